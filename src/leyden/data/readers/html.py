"""Web pages to text: the main content, without menus, footers and other furniture."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from leyden.data.documents import Document
from leyden.data.readers.charsets import decode_page
from leyden.data.readers.limits import extracted
from leyden.data.readers.packed import whole
from leyden.data.readers.piece import Found, Piece
from leyden.data.readers.problem import Problem
from leyden.data.readers.settings import ReadSettings

_MAX_LEVELS = 1000
"""Levels of elements: browsers stop at 512, and extraction's time grows with the square of the depth."""

_TAG = re.compile(r"<(/?)(?!(?:br|hr|img|p|li|td|th|tr|dt|dd|option|input|meta|link|col)\b)[a-z]", re.IGNORECASE)
"""Of elements that must be closed. The others hold nothing, or lie within one of these: at most three to one."""

_STEPS = {"": 1, "/": -1}


def read_html(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The file's main text; its title and the language that it says it has are metadata."""
    data = whole(piece.source.path, settings.max_document_bytes)
    text, metadata = extract(data, "", settings)
    origin = piece.source.origin or str(piece.source.path)
    yield "", Document(piece.source.name, text, origin, metadata=metadata)


def extract(data: bytes, charset: str, settings: ReadSettings) -> tuple[str, dict[str, Any]]:
    """The main text of a page, and its metadata.

    Args:
        data: HTML.
        charset: its encoding as its server said; empty: the page says, or its bytes show.
        settings: who finds the main text, whether there is metadata, and what that may take.

    Raises:
        Problem: the page is empty, binary or nested too deeply, takes too long or too much memory, or has no main text.
    """
    if not data.strip():
        raise Problem("empty")
    page = decode_page(data, charset)
    most = _MAX_LEVELS if _may_be_deep(page) else 0
    try:
        text, about = extracted(settings, settings.html, "html", page, settings.html, most, settings.metadata == "all")
    except (Problem, ImportError):
        raise
    except Exception as error:  # what a library did not foresee costs the page, not its archive
        raise Problem("corrupt HTML", f"{type(error).__name__}: {error}"[:300]) from None
    if text is None:
        raise Problem("nested too deeply", f"more than {_MAX_LEVELS} levels of elements")
    if not text.strip():
        raise Problem("no main text", f"in {len(data):,} bytes of HTML")
    return text, about


def _may_be_deep(page: str) -> bool:
    """Whether elements may be nested more deeply than is allowed: a cheap look at the tags alone."""
    levels = itertools.accumulate(map(_STEPS.__getitem__, _TAG.findall(page)))
    return max(levels, default=0) > _MAX_LEVELS // 4
