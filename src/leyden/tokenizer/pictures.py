"""Files of pictures, from anywhere: decoded within limits, or refused in one sentence.

A file is untrusted. Its kind is what its first bytes are, whatever its name says; how many pixels it claims is looked
at before they are made.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from leyden.core.errors import UserError

KINDS = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF"}
"""What is read, as Pillow calls it and as people do."""

_PAGES = ("MPO",)
"""Kinds of which further frames are other views of the first (a camera's JPEG with a preview behind it)."""


class NoPictureError(UserError):
    """The bytes are no picture that is read; the message says why, and what is."""


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may be.

    Attributes:
        max_bytes: of the file.
        max_pixels: of the decoded picture, height times width.
        max_side: pixels of its longer side.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 64_000_000
    max_side: int = 65_500


def decode_picture(data: bytes, limits: PictureLimits = PictureLimits(), *, source: str = "the picture") -> Image.Image:
    """Decode a file.

    Palettes, grey, CMYK and 16-bit grey become RGB with 8 bits; transparency is left out, as in the released processor.
    A picture is turned as its EXIF tag says.

    Args:
        data: the whole file.
        limits: what is refused.
        source: what the error calls it.

    Returns:
        The picture, in RGB, at least 1 x 1.

    Raises:
        NoPictureError: not a picture of a kind that is read, animated, truncated, damaged, or beyond the limits.
    """
    if len(data) > limits.max_bytes:
        raise NoPictureError(
            f"{source} has {len(data):,} bytes; at most {limits.max_bytes:,} are read. Save it smaller, or as JPEG."
        )
    try:
        with Image.open(io.BytesIO(data), formats=list(KINDS)) as image:
            _check(image, limits, source)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image), source)
    except NoPictureError:
        raise
    except Image.UnidentifiedImageError:
        raise NoPictureError(f"{source} {_what_it_is(data)}; read are {', '.join(KINDS.values())}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise NoPictureError(f"{source} claims more than the {limits.max_pixels:,} pixels that are read.") from None
    except MemoryError:
        raise
    except Exception as error:  # of any type: each decoder has its own, and none may end a run or a server
        raise NoPictureError(f"{source} is damaged or cut off ({_said(error)}); save it again.") from None


def _check(image: Image.Image, limits: PictureLimits, source: str) -> None:
    """Before any pixel is made."""
    width, height = image.size
    if width < 1 or height < 1:
        raise NoPictureError(f"{source} is {width} x {height} pixels; a picture has at least 1 x 1.")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise NoPictureError(
            f"{source} is {width:,} x {height:,} pixels; at most {limits.max_pixels:,} are read, and at most "
            f"{limits.max_side:,} a side. Scale it down."
        )
    frames = 1 if image.format in _PAGES else getattr(image, "n_frames", 1)
    if frames > 1:
        raise NoPictureError(f"{source} has {frames:,} frames or pages; a picture has one. Save the one that is meant.")


def _as_rgb(image: Image.Image, source: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would cut off at 255; this is value / 65535 of white, rounded to the nearest of 8 bits.
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise NoPictureError(
            f"{source} has 32 bits a pixel, of which nobody says what is white; save it with 8 or 16 bits."
        )
    if image.mode == "RGB":
        return image
    # A palette with transparent colours is told apart from its colours first, else Pillow warns.
    return (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")


def _what_it_is(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "has no bytes"
    if head.startswith((b"<svg", b"<?xml")) or b"<svg" in head:
        return "is SVG, which describes a picture in text; render it first"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body")) or b"<html" in head:
        return "is HTML, a page and not a picture (an error page of a server, perhaps)"
    return "is no picture of a kind that is read"


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:120].rstrip(".")
    return text or type(error).__name__
