"""How pictures are cut, beside a second reading of the released rules: float64 sizes, a patch and a crop at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from leyden.model.vision import RELEASED_PINPOINTS
from leyden.tokenizer.tiling import END_OF_ROW, Tiling, best_canvas

RELEASED = Tiling(336, 14, RELEASED_PINPOINTS)
SMALL = Tiling(12, 3, tuple((height // 28, width // 28) for height, width in RELEASED_PINPOINTS))
"""The released canvases with tiles of 12 pixels and 4 x 4 patches."""


@st.composite
def sizes(draw: st.DrawFn, most: int = 3000) -> tuple[int, int]:
    """(height, width) of every ratio from 1:6 to 6:1."""
    height = draw(st.integers(1, most))
    width = draw(st.integers(max(1, math.ceil(height / 6)), min(most, height * 6)))
    return height, width


def second_canvas(size: tuple[int, int], canvases: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Canvas by canvas, as the released code walks through them."""
    best, most, least = None, 0, float("inf")
    for tall, wide in canvases:
        scale = np.minimum(np.float64(wide) / np.float64(size[1]), np.float64(tall) / np.float64(size[0]))
        w, h = math.trunc(np.float64(size[1]) * scale), math.trunc(np.float64(size[0]) * scale)
        survive = min(w * h, size[0] * size[1])
        waste = wide * tall - survive
        if survive > most or (survive == most and waste < least):
            best, most, least = (tall, wide), survive, waste
    assert best is not None
    return best


def second_tokens(tiling: Tiling, size: tuple[int, int]) -> list[tuple[int, int, int] | None]:
    """(tile, row, column) of the patch that each token shows, None at the end of a row."""
    height, width = size
    tall, wide = (side // tiling.patch for side in second_canvas(size, tiling.canvases))
    side = tiling.tile // tiling.patch
    found: list[tuple[int, int, int] | None] = [(0, y, x) for y in range(side) for x in range(side)]
    top = left = 0
    if np.float64(width) / np.float64(height) > np.float64(wide) / np.float64(tall):
        top = (tall - math.floor(Fraction(height * wide, width))) // 2
    else:
        left = (wide - math.floor(Fraction(width * tall, height))) // 2
    for y in range(top, tall - top):
        for x in range(left, wide - left):
            found.append((1 + (y // side) * (wide // side) + x // side, y % side, x % side))
        found.append(None)
    return found


def second_tiles(tiling: Tiling, picture: Image.Image) -> list[np.ndarray]:
    """By Pillow's own paste and crop."""
    side, (tall, wide) = tiling.tile, second_canvas((picture.height, picture.width), tiling.canvases)
    w, h = picture.size
    if w / h > wide / tall:
        scaled = wide, max(1, int(np.float64(wide * h) / np.float64(w)))
    else:
        scaled = max(1, int(np.float64(tall * w) / np.float64(h))), tall
    canvas = Image.new("RGB", (wide, tall), (0, 0, 0))
    canvas.paste(picture.resize(scaled, Image.BICUBIC), ((wide - scaled[0]) // 2, (tall - scaled[1]) // 2))
    tiles = [picture.resize((side, side), Image.BICUBIC)]
    for y in range(0, tall, side):
        tiles += [canvas.crop((x, y, x + side, y + side)) for x in range(0, wide, side)]
    return [np.asarray(tile) for tile in tiles]


@given(size=sizes())
@example(size=(336, 336))
@example(size=(2016, 2016))
@example(size=(1, 6))
@example(size=(49, 7))
@settings(max_examples=150)
def test_tokens_of_every_ratio(size: tuple[int, int]) -> None:
    for tiling in (RELEASED, SMALL):
        layout, expected = tiling.layout(size), second_tokens(tiling, size)
        assert layout.canvas == second_canvas(size, tiling.canvases)
        assert layout.num_tokens == len(expected) == len(layout.patches)
        side = tiling.tile // tiling.patch
        numbers = [END_OF_ROW if at is None else (at[0] * side + at[1]) * side + at[2] for at in expected]
        assert layout.patches.tolist() == numbers
        assert max(numbers) < layout.num_tiles * side * side


@given(size=sizes(60), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_pixels_of_every_ratio(size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    found = SMALL.cut(picture)
    expected = second_tiles(SMALL, picture)
    assert found.tiles.shape == (len(expected), 3, 12, 12) == (SMALL.layout(size).num_tiles, 3, 12, 12)
    for tile, other in zip(found.tiles, expected, strict=True):
        assert np.array_equal(tile.transpose(1, 2, 0), other)


def test_a_patch_shows_what_lies_there_in_the_picture() -> None:
    """Coordinates painted into a picture come back from the patches, in the order in which one reads."""
    picture = np.zeros((24, 36, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(24)[:, None] * 10, np.arange(36) * 7
    cut = SMALL.cut(Image.fromarray(picture))
    assert len(cut.tiles) == 1 + 2 * 3
    patches = cut.tiles.reshape(-1, 3, 4, 3, 4, 3).transpose(0, 2, 4, 3, 5, 1).reshape(-1, 3, 3, 3)
    shown = cut.rows[16:].reshape(8, 13)
    assert (shown[:, 12] == END_OF_ROW).all()
    for y in range(8):
        for x in range(12):
            block = picture[3 * y : 3 * y + 3, 3 * x : 3 * x + 3]
            assert np.array_equal(patches[shown[y, x]], block)


def test_the_released_numbers() -> None:
    """By hand: a canvas that is filled keeps all of its patches and one more for each row of them."""
    assert RELEASED.layout((336, 336)).num_tokens == 576 + 24 * 25
    assert RELEASED.layout((2016, 1008)).num_tokens == 576 + 144 * 73
    # 600 x 1000 on 672 x 1008: 43 of 48 rows (1000 : 600 = 72 : 43.2), (48 - 43) // 2 = 2 are left out on each side.
    layout = RELEASED.layout((600, 1000))
    assert layout.canvas == (672, 1008) and layout.scaled == (604, 1008)
    assert layout.num_tokens == 576 + 44 * 73 and layout.num_tiles == 7
    assert Tiling(336, 14, ()).layout((50, 70)).num_tokens == 577


def test_a_fixed_tile() -> None:
    fixed = Tiling(12, 3, ())
    cut = fixed.cut(Image.new("RGB", (31, 17), (9, 8, 7)))
    assert cut.tiles.shape == (1, 3, 12, 12) and (cut.tiles == np.array([9, 8, 7])[:, None, None]).all()
    assert cut.rows.tolist() == [*range(16), END_OF_ROW]


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_a_line_is_a_picture(size: tuple[int, int]) -> None:
    """Scaled, one side of it would vanish; what is left of its canvas may be no patch at all."""
    layout = RELEASED.layout(size)
    assert min(layout.scaled) == 1
    cut = RELEASED.cut(Image.new("RGB", (size[1], size[0])))
    assert len(cut.tiles) == layout.num_tiles and len(cut.rows) == layout.num_tokens


@given(size=sizes(2500))
@settings(max_examples=60)
def test_the_canvases_may_be_read_by_height_or_by_width(size: tuple[int, int]) -> None:
    """The release lists them without a word, its processor takes width first, and a port height first: the same."""
    turned = tuple((height, width) for width, height in RELEASED_PINPOINTS)
    assert best_canvas(size, RELEASED_PINPOINTS) == best_canvas(size, turned)


def test_what_shows_the_same_has_the_same_digest() -> None:
    one, same = (SMALL.cut(Image.new("RGB", (20, 30), (1, 2, 3))) for _ in range(2))
    other = SMALL.cut(Image.new("RGB", (20, 30), (1, 2, 4)))
    wider = SMALL.cut(Image.new("RGB", (20, 20), (1, 2, 3)))
    assert one.digest == same.digest and len({one.digest, other.digest, wider.digest}) == 3
