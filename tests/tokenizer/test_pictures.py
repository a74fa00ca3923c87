"""Files of pictures: what is read and as what, and what is refused in which words."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leyden.core.errors import UserError
from leyden.tokenizer.pictures import KINDS, NoPictureError, PictureLimits, decode_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refused(data: bytes, words: str, **limits: int) -> None:
    with pytest.raises(NoPictureError, match=words) as error:
        decode_picture(data, PictureLimits(**limits), source="cat.png")
    text = str(error.value)
    assert text.startswith("cat.png ") and text.endswith(".") and "\n" not in text
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_are_read(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_picture(encoded(Image.fromarray(PIXELS), kind, **options))
    assert found.mode == "RGB" and found.size == (14, 9)
    if kind not in ("JPEG", "GIF"):
        assert np.array_equal(np.asarray(found), PIXELS)


def test_palettes_grey_and_transparency_become_rgb() -> None:
    plain = Image.fromarray(PIXELS).quantize(16)
    assert np.array_equal(np.asarray(decode_picture(encoded(plain))), np.asarray(plain.convert("RGB")))
    transparent = encoded(plain, transparency=bytes(range(16)))
    assert np.array_equal(np.asarray(decode_picture(transparent)), np.asarray(plain.convert("RGB")))
    grey = Image.fromarray(PIXELS[..., 0])
    assert np.array_equal(np.asarray(decode_picture(encoded(grey))), np.repeat(PIXELS[..., :1], 3, 2))
    seen = np.dstack([PIXELS, PIXELS[..., 0]])
    assert np.array_equal(np.asarray(decode_picture(encoded(Image.fromarray(seen)))), PIXELS)
    bits = Image.fromarray(PIXELS[..., 0]).convert("1")
    assert set(np.unique(np.asarray(decode_picture(encoded(bits))))) <= {0, 255}


def test_cmyk() -> None:
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    red, green, blue = decode_picture(encoded(flat, "JPEG", quality=95)).getpixel((4, 4))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_scale(kind: str) -> None:
    values = np.array([[0, 128, 257, 32_768], [65_535, 65_407, 65_406, 1]], np.uint16)
    found = np.asarray(decode_picture(encoded(Image.fromarray(values), kind)))[..., 0]
    assert found.tolist() == [[0, 0, 1, 128], [255, 255, 254, 0]]  # value / 257, to the nearest


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_exif_tag_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = np.asarray(decode_picture(encoded(Image.fromarray(PIXELS), exif=exif)))
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PIXELS),
    }
    assert np.array_equal(found, turned[orientation])


def test_what_is_no_picture_says_what_it_is() -> None:
    refused(b"", "has no bytes; read are PNG")
    refused(b"  \n<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG")
    refused(b'<?xml version="1.0"?><svg/>', "is SVG")
    refused(b"\xef\xbb\xbf<!DOCTYPE html><html>Not found</html>", "is HTML, a page and not a picture")
    refused(b"%PDF-1.7 ...", "is no picture of a kind that is read; read are PNG, JPEG, WebP, GIF, BMP, TIFF")
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no picture of a kind")


def test_a_name_does_not_make_a_kind() -> None:
    """What Pillow could read besides is not tried: some of it runs other programs."""
    refused(encoded(Image.fromarray(PIXELS), "PPM"), "is no picture of a kind")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    for share in (0.6, 0.9):
        with pytest.raises(NoPictureError):
            decode_picture(whole[: int(len(whole) * share)])


@given(data=st.binary(max_size=80), place=st.integers(0, 300), kind=st.sampled_from(list(KINDS)))
@settings(max_examples=120)
def test_damage_ends_nothing(data: bytes, place: int, kind: str) -> None:
    """Whatever bytes: a picture, or one sentence."""
    whole = bytearray(encoded(Image.fromarray(PIXELS), kind))
    whole[place : place + len(data)] = data
    try:
        assert decode_picture(bytes(whole)).mode == "RGB"
    except NoPictureError as error:
        assert "\n" not in str(error)


def test_a_bomb_is_refused_by_its_header() -> None:
    refused(png(60_000, 60_000), r"3,600,000,000|more than the 64,000,000 pixels|60,000 x 60,000 pixels")
    refused(png(9_000, 9_000), r"9,000 x 9,000 pixels; at most 64,000,000 are read")
    refused(png(70_000, 1), "70,000 x 1 pixels")
    refused(png(30, 40), "30 x 40 pixels; at most 1,000 are read", max_pixels=1000)


def test_sizes_that_are_none() -> None:
    refused(png(0, 5), "damaged|0 x 5|no picture")
    refused(encoded(Image.fromarray(PIXELS)), "bytes; at most 100 are read", max_bytes=100)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_moving_pictures_and_pages_are_refused(kind: str) -> None:
    frames = [Image.fromarray(np.roll(PIXELS, shift, 1)) for shift in range(3)]
    refused(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), "has 3 frames or pages")
    single = decode_picture(encoded(frames[0], kind, save_all=True))
    assert single.size == (14, 9)


def test_a_cameras_jpeg_with_a_preview_is_its_first_picture() -> None:
    big, preview = Image.new("RGB", (40, 30), (200, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 200))
    found = decode_picture(encoded(big, "MPO", save_all=True, append_images=[preview]))
    assert found.size == (40, 30)


def test_32_bits_are_refused() -> None:
    refused(encoded(Image.fromarray(np.ones((4, 5), np.float32)), "TIFF"), "32 bits a pixel")
