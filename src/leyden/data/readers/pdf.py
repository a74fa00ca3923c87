"""PDF files to text."""

from collections.abc import Iterator

from leyden.data.documents import Document
from leyden.data.readers.limits import extracted
from leyden.data.readers.piece import Found, Piece
from leyden.data.readers.problem import Problem, too_long
from leyden.data.readers.rows import time_of
from leyden.data.readers.settings import ReadSettings

_TIMES = 30
"""What all pages of a file may take, of what one may: a book has hundreds, and most take a tenth of a second."""


def read_pdf(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The text of all pages, an empty line between two; title, author and the number of pages are metadata.

    A file that needs a password is set aside, and one without text (scanned pages).
    """
    path = str(piece.source.path)
    with piece.source.path.open("rb"):
        pass  # so that one that cannot be read says so
    try:
        num_pages, about = extracted(settings, "pypdf", "open", path)
        text = "\n\n".join(_pages(path, num_pages, settings))
    except PermissionError as error:
        raise Problem("encrypted PDF", str(error)) from None
    except (Problem, OSError):
        raise
    except Exception as error:  # a broken file makes pypdf raise almost anything
        raise Problem("corrupt PDF", f"{type(error).__name__}: {error}"[:300]) from None
    if not text.strip():
        raise Problem("PDF without text", f"{num_pages} pages")
    created = time_of(about.pop("created", None))
    yield (
        "",
        Document(
            id=piece.source.name,
            text=text,
            source=piece.source.origin or path,
            time=created,
            metadata={"num_pages": num_pages, **about} if settings.metadata == "all" else {},
        ),
    )


def _pages(path: str, num_pages: int, settings: ReadSettings) -> Iterator[str]:
    size, left = 0, _TIMES * settings.max_extraction_seconds
    for number in range(num_pages):
        page, seconds = extracted(settings, "pypdf", "page", path, number)
        left -= seconds
        text = page.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
        size += len(text)
        if size > settings.max_document_bytes:
            raise too_long(settings.max_document_bytes)
        if left < 0:
            raise Problem("took too long", f"page {number + 1} of {num_pages} is not the last that could be read")
        if text.strip():
            yield text.strip()
