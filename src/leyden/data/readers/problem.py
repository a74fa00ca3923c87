"""What keeps a document, or the rest of a file, from being read; and the checks that find it."""

from leyden.data.documents import Document

MAX_DEPTH = 64
"""Levels of lists and objects in a row; what is nested deeper is not data that anyone wrote."""

MAX_BRACKETS = 2_000_000
"""Opening brackets and braces in the JSON of one row, those in its texts among them: an empty list is two bytes there,
and seventy as an object."""

EMPTY = "empty"
NOT_A_PAGE = "not a page"
HARMLESS = (EMPTY, NOT_A_PAGE)
"""Reasons that are no sign of anything wrong: a sixth of a Python library's files are empty, and most of what a crawl
fetches are pictures, redirects and errors."""


class Problem(Exception):  # noqa: N818 - carries a Reject's fields to where the file is known
    """Why something is set aside.

    A reader yields it for one document and goes on; it raises it where nothing further can be read of the file.

    Attributes:
        reason: one of a few, to count by.
        detail: what exactly was found.
        place: where in the file, if known here.
        count: how many of its kind it stands for.
    """

    def __init__(self, reason: str, detail: str = "", place: str = "", count: int = 1) -> None:
        super().__init__(reason, detail, place, count)
        self.reason, self.detail, self.place, self.count = reason, detail, place, count


def too_long(limit: int) -> Problem:
    """Something is longer than ``max_document_bytes``."""
    return Problem("too long", f"more than {limit:,} bytes")


def decode(data: bytes, fallback: str = "") -> str:
    """Bytes of UTF-8, or of ``fallback``, as text.

    Raises:
        Problem: they are neither.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not fallback:
            raise Problem("not UTF-8", error.reason, f"byte {error.start}") from None
    try:
        return data.decode(fallback)
    except UnicodeDecodeError as error:
        raise Problem("not UTF-8", f"nor {fallback}: {error.reason}", f"byte {error.start}") from None


def check(document: Document, limit: int) -> None:
    """Raise a Problem if the document cannot stand in a batch: it is empty, longer than ``limit``, or not Unicode."""
    contents = [message.content for message in document.messages] or [document.text]
    if not any(contents):
        raise Problem(EMPTY)
    try:
        size = sum(len(content.encode()) for content in contents)
        f"{document.id}{document.url}".encode()
    except UnicodeEncodeError as error:
        raise Problem("not UTF-8", f"a lone surrogate at character {error.start}") from None
    if size > limit:
        raise too_long(limit)
