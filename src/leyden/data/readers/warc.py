"""Web archives: WARC (pages as they were fetched) and WET (their text)."""

import re
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from leyden.data.documents import Document
from leyden.data.readers.html import decode_page, extract
from leyden.data.readers.packed import GZIP_MEMBER, ZSTD_FRAME, chunks, find
from leyden.data.readers.pieces import Found, Piece
from leyden.data.readers.problem import Problem, decode, too_long
from leyden.data.readers.rows import time_of
from leyden.data.readers.settings import ReadSettings

_PLAIN_RECORD = re.compile(rb"WARC/[01]\.\d+\r?\n")
_MANDATORY = ("warc-type", "warc-record-id", "warc-date", "content-length")  # ISO 28500, section 5
_HTML = ("text/html", "application/xhtml+xml")


def read_warc(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The pages of a WARC (``response`` and ``resource`` records of HTML or plain text that were fetched well) and the
    texts of a WET (``conversion`` records); other records are no documents.

    A range gives the records that begin in it, named by the byte where they do (``@1204``); a whole file, named by the
    record's number (``:7``). After a record that is broken, reading goes on at the next that begins.
    """
    stop = sys.maxsize if piece.end is None else piece.end
    labels = (f":{number}" for number in count(1)) if piece.end is None else None
    begin = _begin_of_records(piece.source.path)
    with piece.source.path.open("rb") as file:
        start = find(file, begin, piece.start) if piece.start else 0
        lost: Found | None = None  # what is broken after the last good record, unless the next that begins is
        while start is not None and start < stop:
            good = -1
            try:
                for good, found in _found_from(file, start, stop, labels, piece, settings):
                    if lost is not None:
                        yield lost
                        lost = None
                    if found is not None:
                        yield f"byte {good}", found
                break
            except OSError as error:
                if error.errno is not None:
                    raise  # of the disk, not of the archive
                problem = Problem("corrupt WARC", str(error))
            lost = (f"after byte {good}", problem) if good >= 0 else None
            if lost is None:
                yield f"byte {start}", problem
            start = find(file, begin, max(good, start) + 1)
        if lost is not None:
            yield lost


def _found_from(
    file: BinaryIO, start: int, stop: int, labels: Iterator[str] | None, piece: Piece, settings: ReadSettings
) -> Iterator[tuple[int, Document | Problem | None]]:
    """For each record from ``start`` to ``stop`` its place, and the document that it is, if any.

    Raises:
        OSError: the record after the last one given is broken.
    """
    place = start
    for record in _records(file, start):
        if record.stream_pos >= stop:
            return
        place = record.stream_pos
        yield place, _read(record, next(labels) if labels else f"@{place}", piece, settings)
    _check_end(file, piece.source.path, place)


def is_packed_by_record(path: Path) -> bool:
    """Whether each record is a member of gzip by itself, as archives ought to be: then a file can be cut between them.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            records = _records(file, 0)
            places = [record.stream_pos for record, _ in zip(records, range(2), strict=False)]
        except OSError as error:
            if error.errno is not None:
                raise
            return False
        return len(places) == 2 and places[1] > 0 and _begins_at(file, places[1], GZIP_MEMBER)


def _begin_of_records(path: Path) -> re.Pattern[bytes]:
    """What records begin with, by how the file is packed."""
    return {".gz": GZIP_MEMBER, ".zst": ZSTD_FRAME}.get(path.suffix.lower(), _PLAIN_RECORD)


def _begins_at(file: BinaryIO, place: int, pattern: re.Pattern[bytes]) -> bool:
    file.seek(place)
    return pattern.match(file.read(16)) is not None


def _records(file: BinaryIO, start: int) -> Iterator[Any]:
    from fastwarc.warc import ArchiveIterator

    file.seek(start)
    return iter(ArchiveIterator(file, auto_decode="all"))


def _check_end(file: BinaryIO, path: Path, last: int) -> None:
    """Look at the end of the file, of which the iterator says nothing; ``last`` is where its last record is.

    Raises:
        OSError: something is broken from there on.
    """
    # Where many records are packed as one, they have no places that can be unpacked from: then all is looked at.
    start = last if _begins_at(file, last, _begin_of_records(path)) else 0
    tail = b""
    for chunk in chunks(path, start):
        if isinstance(chunk, Problem):
            raise OSError(chunk.detail)
        tail = (tail + chunk)[-4:]
    if tail not in (b"", b"\r\n\r\n"):
        raise OSError("the file ends within a record")


def _read(record: Any, label: str, piece: Piece, settings: ReadSettings) -> Document | Problem | None:
    """The document of a record; None if it is none.

    Raises:
        OSError: the record is broken.
    """
    from fastwarc.warc import WarcRecordType

    headers = {name.lower(): value for name, value in record.headers.to_tuples()}
    if missing := [name for name in _MANDATORY if name not in headers]:
        raise OSError(f"a record without {', '.join(missing)}")
    if record.record_type not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion):
        return None
    kind = _content_type(record, headers)
    if kind not in (*_HTML, "text/plain") or not _fetched(record):
        return None
    expected, limit = record.content_length, settings.max_document_bytes
    data = record.reader.read(limit + 1)
    if len(data) > limit:
        return too_long(limit)
    if len(data) < expected and not _is_encoded(record):
        raise OSError(f"{len(data):,} of the record's {expected:,} bytes")
    try:
        text, about = _text(data, kind, record, settings)
    except Problem as problem:
        return problem
    about = {"warc_record_id": headers["warc-record-id"].strip("<>"), **about}
    return Document(
        id=piece.source.name + label,
        text=text,
        source=piece.source.origin or str(piece.source.path),
        url=headers.get("warc-target-uri"),
        time=time_of(headers["warc-date"]),
        metadata=about if settings.metadata == "all" else {},
    )


def _text(data: bytes, kind: str, record: Any, settings: ReadSettings) -> tuple[str, dict[str, Any]]:
    from fastwarc.warc import WarcRecordType

    if record.record_type == WarcRecordType.conversion:
        return decode(data), {}
    charset = record.http_charset or ""
    return extract(data, charset, settings) if kind in _HTML else (decode_page(data, charset), {})


def _content_type(record: Any, headers: Mapping[str, str]) -> str:
    given = record.http_content_type if record.is_http else headers.get("content-type")
    return (headers.get("warc-identified-payload-type") or given or "").partition(";")[0].strip().lower()


def _fetched(record: Any) -> bool:
    return not record.is_http or 200 <= (record.http_headers.status_code or 0) < 300


def _is_encoded(record: Any) -> bool:
    names = {name.lower() for name, _ in record.http_headers.to_tuples()} if record.is_http else set()
    return bool(names & {"content-encoding", "transfer-encoding"})
