"""PDF files to text."""

import logging
from collections.abc import Iterator
from typing import Any

from leyden.data.documents import Document
from leyden.data.readers.pieces import Found, Piece
from leyden.data.readers.problem import Problem, too_long
from leyden.data.readers.rows import time_of
from leyden.data.readers.settings import ReadSettings


def read_pdf(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The text of all pages, an empty line between two; title, author and the number of pages are metadata.

    A file that is encrypted is set aside, and one without text (scanned pages).
    """
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of each of a file's slips
    with piece.source.path.open("rb") as file:
        try:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted:
                raise Problem("encrypted PDF")
            text = "\n\n".join(_pages(reader, settings.max_document_bytes))
            about = reader.metadata
        except (Problem, OSError):
            raise
        except Exception as error:  # a broken file makes pypdf raise almost anything
            raise Problem("corrupt PDF", f"{type(error).__name__}: {error}"[:300]) from None
        num_pages = len(reader.pages)
    if not text.strip():
        raise Problem("PDF without text", f"{num_pages} pages")
    yield (
        "",
        Document(
            id=piece.source.name,
            text=text,
            source=piece.source.origin or str(piece.source.path),
            time=_created(about),
            metadata=_metadata(about, num_pages) if settings.metadata == "all" else {},
        ),
    )


def _pages(reader: Any, limit: int) -> Iterator[str]:
    size = 0
    for page in reader.pages:
        text = page.extract_text().encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
        size += len(text)
        if size > limit:
            raise too_long(limit)
        if text.strip():
            yield text.strip()


def _created(about: Any) -> Any:
    try:
        return time_of(about.creation_date) if about else None
    except ValueError:  # what pypdf raises for a date that is none
        return None


def _metadata(about: Any, num_pages: int) -> dict[str, Any]:
    fields = {"title": about.title, "author": about.author} if about else {}
    return {"num_pages": num_pages, **{name: str(value) for name, value in fields.items() if value}}
