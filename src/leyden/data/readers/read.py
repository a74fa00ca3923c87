"""Pieces of sources to documents. What cannot be read is set aside with its file, place and reason; reading goes on."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from leyden.core.errors import UserError
from leyden.data.documents import Document, Reject
from leyden.data.readers.columns import read_arrow, read_parquet
from leyden.data.readers.html import read_html
from leyden.data.readers.jsonl import read_jsonl
from leyden.data.readers.pdf import read_pdf
from leyden.data.readers.piece import Piece, Reader
from leyden.data.readers.problem import EMPTY, HARMLESS, Problem, check
from leyden.data.readers.settings import ReadSettings
from leyden.data.readers.text import read_code, read_text
from leyden.data.readers.warc import read_warc
from leyden.data.sources import (
    SUFFIXES,
    SourceFile,
    find_sources,
    is_of_standard_library,
    standard_library_sources,
)

READERS: dict[str, Reader] = {
    "text": read_text,
    "markdown": read_text,
    "code": read_code,
    "html": read_html,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "warc": read_warc,
    "pdf": read_pdf,
}
"""What reads a file of each of :data:`~leyden.data.sources.FORMATS`."""

_SIMPLE = ReadSettings(rows="text", metadata="none")
_FILES = _SIMPLE.model_copy(update={"max_document_bytes": 1 << 40})
"""A file that was named and is one document may have any length; a row of a table may not."""


_DETAIL_CHARACTERS = 400
"""Of what was found in a file, which may quote it."""


class Rejects(Protocol):
    """What takes what is set aside: a list, or a file."""

    def append(self, reject: Reject, /) -> None:
        """Take one more."""


def read_piece(piece: Piece, settings: ReadSettings, rejects: Rejects) -> Iterator[Document]:
    """The documents of a piece, in its order, in memory bounded by ``max_document_bytes`` and not by the file.

    Args:
        piece: as of :func:`~leyden.data.readers.pieces.plan_shards`.
        settings: how its source is read.
        rejects: takes what is set aside, as it is met. A file that changes while it is read is among it, beside the
            documents that it gave. Where ``max_rejects`` things were set aside for one reason, and no fewer than there
            are documents, the rest is not read, and that is the last of them.
    """
    path = piece.source.path
    try:
        before = _version(path)
    except OSError as error:
        rejects.append(_unreadable(path, error))
        return
    try:
        yield from _read(piece, settings, rejects, size=before[0])
    except Problem as problem:
        rejects.append(_reject(str(path), "", problem))
    except OSError as error:
        rejects.append(_unreadable(path, error))
    except (UserError, ImportError):  # of the settings, not of the file: a package that is not there
        raise
    except Exception as error:  # what a library did not foresee in a file costs that file
        rejects.append(Reject(str(path), "", "reading failed", f"{type(error).__name__}: {error}"[:400]))
    _report_change(path, before, rejects)


def _read(piece: Piece, settings: ReadSettings, rejects: Rejects, size: int) -> Iterator[Document]:
    path = str(piece.source.path)
    num_documents, counts = 0, Counter[str]()
    for place, found in READERS[piece.format](piece, settings):
        try:
            document = _good(found, settings)
        except Problem as problem:
            rejects.append(_reject(path, place, problem))
            counts[problem.reason] += 1
            times = counts[problem.reason]
            if problem.reason not in HARMLESS and times >= max(settings.max_rejects, num_documents):
                detail = (
                    f"{times:,} times '{problem.reason}', and {num_documents:,} documents; what follows is not read"
                )
                rejects.append(Reject(path, problem.place or place, "given up", detail))
                return
        else:
            num_documents += 1
            yield document
    if not num_documents and not counts and (piece.end is None or size == 0):
        rejects.append(Reject(path, "", EMPTY, "no documents"))


def _good(found: Document | Problem, settings: ReadSettings) -> Document:
    if isinstance(found, Problem):
        raise found
    check(found, settings.max_document_bytes)
    return found


def _reject(path: str, place: str, problem: Problem) -> Reject:
    return Reject(path, problem.place or place, problem.reason, problem.detail[:_DETAIL_CHARACTERS], problem.count)


def _unreadable(path: Path, error: OSError) -> Reject:
    return Reject(str(path), "", "unreadable", error.strerror or str(error))


def _version(path: Path) -> tuple[int, int]:
    """What tells whether a file is as it was: its bytes, and when it was written."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _report_change(path: Path, before: tuple[int, int], rejects: Rejects) -> None:
    try:
        after = _version(path)
    except OSError as error:
        rejects.append(Reject(str(path), "", "changed while read", error.strerror or str(error)))
        return
    if after != before:
        detail = f"{before[0]:,} bytes before, {after[0]:,} after" if after[0] != before[0] else "written again"
        rejects.append(Reject(str(path), "", "changed while read", detail))


def read_documents(paths: Iterable[str | Path | SourceFile], rejects: list[Reject]) -> Iterator[Document]:
    """Read every text of ``paths``, in an order that depends on the names alone.

    Args:
        paths: files and folders (.txt, .md, .py, .jsonl, each also .gz or .zst, and .parquet), ``python:stdlib`` or a
            part of it, or sources already found. A row of .jsonl or .parquet gives one document, its ``text``; any
            other file gives one.
        rejects: takes what is set aside, as it is met, and what was found in folders and is not read.

    Raises:
        UserError: a path does not exist or is of a kind that is not read; no path holds any such file; or nothing in
            them could be read.
    """
    sources: list[SourceFile] = []
    for path in paths:
        if isinstance(path, SourceFile):
            sources.append(path)
            continue
        if is_of_standard_library(path):
            sources += standard_library_sources(str(path))
            continue
        found, skipped = find_sources([path])
        sources += found
        rejects += skipped
    if not sources:
        raise UserError(f"There is nothing to read: the folders named hold no file of {', '.join(SUFFIXES)}.")
    num_documents, num_skipped = 0, len(rejects)
    for source in sources:
        settings = _SIMPLE if source.format in ("jsonl", "parquet", "arrow") else _FILES
        for document in read_piece(Piece(source, source.format, 0), settings, rejects):
            num_documents += 1
            yield document
    if not num_documents:
        first = rejects[num_skipped]
        raise UserError(f"None of {len(sources)} files gave a document. The first that was set aside: {first}.")
