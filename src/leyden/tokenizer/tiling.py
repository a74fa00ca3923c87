"""How a picture is cut for a vision tower, and which of its patches become which tokens: the rules of MiniMax-VL-01.

A picture is laid on one of a few canvases, scaled so that it touches two opposite edges and centred between the other
two, and the canvas is cut into square tiles. Before them stands the whole picture, squeezed into one tile. Of the
canvas, the rows (or columns) of patches that show padding alone are left out again, and a vector of its own ends each
row of patches that is left. All sizes round down, where LLaVA-NeXT rounds up (arXiv 2501.08313, section 6; the
released processor).

Sizes are (height, width) everywhere.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

Size = tuple[int, int]

END_OF_ROW = -1
"""In the place of a patch's number: the vector that ends a row of patches."""


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        tile: the side of a tile, in pixels.
        patch: the side of a patch, in pixels; it divides ``tile``.
        canvases: (height, width) of each, multiples of ``tile``. Empty: a picture is one tile, whatever its size.
    """

    tile: int
    patch: int
    canvases: tuple[Size, ...]

    def layout(self, size: Size) -> "PictureLayout":
        """Where a picture of this size in pixels goes."""
        return PictureLayout(self, size, best_canvas(size, self.canvases) if self.canvases else None)

    def cut(self, picture: Image.Image) -> "CutPicture":
        """The tiles of an RGB picture, and what each of its tokens shows."""
        layout = self.layout((picture.height, picture.width))
        return CutPicture(layout.tiles_of(picture), layout.patches)


@dataclass(frozen=True, eq=False)
class CutPicture:
    """A picture as a model takes it.

    Attributes:
        tiles: [N, 3, S, S] uint8.
        rows: [n] int64, one entry a token: the number of a patch, counted through all tiles, or :data:`END_OF_ROW`.
    """

    tiles: np.ndarray
    rows: np.ndarray

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that tell what the picture shows; equal ones make equal vectors."""
        digest = hashlib.blake2b(digest_size=32)
        for part in (self.tiles, self.rows):
            digest.update(repr((part.shape, part.dtype.str)).encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.digest()


@dataclass(frozen=True)
class PictureLayout:
    """Where a picture goes.

    Attributes:
        tiling: how pictures are cut.
        size: of the picture, in pixels.
        canvas: it is laid on; None where it is one tile.
    """

    tiling: Tiling
    size: Size
    canvas: Size | None

    @cached_property
    def scaled(self) -> Size:
        """What the picture is scaled to within its canvas; no side vanishes, however long the other is."""
        (height, width), (tall, wide) = self.size, self.canvas or (self.tiling.tile, self.tiling.tile)
        if _is_wider(self.size, (tall, wide)):
            return max(1, wide * height // width), wide
        return tall, max(1, tall * width // height)

    @cached_property
    def kept(self) -> tuple[slice, slice]:
        """The rows and the columns of the canvas's patches that show something of the picture."""
        assert self.canvas is not None, "a picture of one tile is kept whole"
        tall, wide = (side // self.tiling.patch for side in self.canvas)
        height, width = self.size
        if _is_wider(self.size, (tall, wide)):
            padding = (tall - height * wide // width) // 2
            return slice(padding, tall - padding), slice(0, wide)
        padding = (wide - width * tall // height) // 2
        return slice(0, tall), slice(padding, wide - padding)

    @cached_property
    def num_tiles(self) -> int:
        """Of the picture, the whole of it in one tile included."""
        return 1 + (
            0 if self.canvas is None else (self.canvas[0] // self.tiling.tile) * (self.canvas[1] // self.tiling.tile)
        )

    @cached_property
    def num_tokens(self) -> int:
        """What the picture takes of a text."""
        whole = (self.tiling.tile // self.tiling.patch) ** 2
        if self.canvas is None:
            return whole + 1
        rows, columns = (kept.stop - kept.start for kept in self.kept)
        return whole + rows * (columns + 1)

    @cached_property
    def patches(self) -> np.ndarray:
        """[num_tokens] int64, what each token shows, as in :class:`CutPicture`."""
        side = self.tiling.tile // self.tiling.patch
        whole = np.arange(side * side)
        if self.canvas is None:
            return np.append(whole, END_OF_ROW)
        down, across = (length // self.tiling.tile for length in self.canvas)
        # The tiles lie one behind another; on the canvas, patch (y, x) of tile (row, column) stands side by side.
        numbers = side * side + np.arange(down * across * side * side).reshape(down, across, side, side)
        canvas = numbers.transpose(0, 2, 1, 3).reshape(down * side, across * side)[self.kept]
        ended = np.concatenate([canvas, np.full((len(canvas), 1), END_OF_ROW)], axis=1)
        return np.concatenate([whole, ended.reshape(-1)])

    def tiles_of(self, picture: Image.Image) -> np.ndarray:
        """[num_tiles, 3, S, S] uint8: the whole picture, then the tiles of its canvas row by row."""
        side = self.tiling.tile
        whole = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))[None]
        if self.canvas is None:
            return np.ascontiguousarray(whole.transpose(0, 3, 1, 2))
        height, width = self.scaled
        top, left = (self.canvas[0] - height) // 2, (self.canvas[1] - width) // 2
        canvas = np.zeros((*self.canvas, 3), np.uint8)
        canvas[top : top + height, left : left + width] = picture.resize((width, height), Image.Resampling.BICUBIC)
        down, across = self.canvas[0] // side, self.canvas[1] // side
        tiles = canvas.reshape(down, side, across, side, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)
        return np.concatenate([whole.transpose(0, 3, 1, 2), tiles])


def best_canvas(size: Size, canvases: Sequence[Size]) -> Size:
    """The canvas on which most of a picture's pixels survive, and of those the one with the least room to spare.

    Scales are float64 and pixels whole numbers, rounded down, as in the released processor: on a canvas as wide as the
    picture is scaled to, that may be a pixel less than the width.
    """
    height, width = size

    def merit(canvas: Size) -> tuple[int, int]:
        tall, wide = canvas
        scale = min(wide / width, tall / height)
        survive = min(int(width * scale) * int(height * scale), width * height)
        return survive, survive - wide * tall

    return max(canvases, key=merit)  # the first of those that are equally good


def _is_wider(size: Size, than: Size) -> bool:
    """Whether the width of one is more of its height than that of the other."""
    return size[1] * than[0] > than[1] * size[0]
