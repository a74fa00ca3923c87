"""Web pages to text: the main content, without menus, footers and other furniture."""

import re
from collections.abc import Iterator
from typing import Any

from leyden.data.documents import Document
from leyden.data.readers.packed import whole
from leyden.data.readers.pieces import Found, Piece
from leyden.data.readers.problem import Problem
from leyden.data.readers.settings import ReadSettings

_MAX_LEVELS = 1000
"""Levels of elements: browsers stop at 512, and extraction's time grows with the square of the depth."""

_TAG = re.compile(rb"<(/?)(?!(?:br|hr|img|p|li|td|th|tr|dt|dd|option|input|meta|link|col)\b)[a-zA-Z]", re.IGNORECASE)
"""Of elements that must be closed. The others hold nothing, or lie within one of these: at most three to one."""


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
        settings: who finds the main text, and whether there is metadata.

    Raises:
        Problem: the page is empty, binary or nested too deeply, or has no main text.
    """
    from resiliparse.parse.html import HTMLTree

    if not data.strip():
        raise Problem("empty")
    page = decode_page(data, charset)
    tree = HTMLTree.parse(page)
    if _may_be_deep(data) and _levels(tree) > _MAX_LEVELS:
        raise Problem("nested too deeply", f"more than {_MAX_LEVELS} levels of elements")
    text = _by_trafilatura(page) if settings.html == "trafilatura" else _by_resiliparse(tree)
    if not text.strip():
        raise Problem("no main text", f"in {len(data):,} bytes of HTML")
    return text, _about(tree) if settings.metadata == "all" else {}


def decode_page(data: bytes, charset: str = "") -> str:
    """A page as text, by its byte order mark, what its server or itself says, or what its bytes show (WHATWG)."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    encoding = map_encoding_to_html5(charset, False) if charset else None
    encoding = encoding or detect_encoding(data, from_html_meta=True) or "utf-8"
    text = bytes_to_str(data, encoding, errors="replace")
    if "\0" in text:
        raise Problem("binary", "a NUL character", f"character {text.index(chr(0))}")
    return text


def _by_resiliparse(tree: Any) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(tree, main_content=True)


def _by_trafilatura(page: str) -> str:
    import trafilatura

    return trafilatura.extract(page, include_comments=False) or ""


def _about(tree: Any) -> dict[str, str]:
    title = (tree.title or "").strip()
    root = tree.document.query_selector("html")
    language = (root.getattr("lang") or "").strip() if root is not None else ""
    return {name: value for name, value in (("title", title), ("html_language", language)) if value}


def _may_be_deep(data: bytes) -> bool:
    """Whether elements may be nested more deeply than is allowed: a cheap look at the tags alone."""
    level = 0
    for match in _TAG.finditer(data):
        level += -1 if match[1] else 1
        if level > _MAX_LEVELS // 4:
            return True
    return False


def _levels(tree: Any) -> int:
    """The depth of the deepest element, or more than is allowed."""
    deepest = 0
    node, level = tree.document, 0
    while node is not None and deepest <= _MAX_LEVELS:
        if node.first_child is not None:
            node, level = node.first_child, level + 1
            deepest = max(deepest, level)
            continue
        while node is not None and node.next is None:
            node, level = node.parent, level - 1
        node = node.next if node is not None else None
    return deepest
