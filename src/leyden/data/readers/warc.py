"""Web archives: WARC (pages as they were fetched) and WET (their text)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from leyden.data.documents import Document
from leyden.data.readers.html import decode_page, extract
from leyden.data.readers.packed import chunks, find
from leyden.data.readers.pieces import Found, Piece
from leyden.data.readers.problem import Problem, decode, too_long
from leyden.data.readers.rows import time_of
from leyden.data.readers.settings import ReadSettings

_RECORD = re.compile(
    rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]"  # a member of gzip, as in packed.py
    rb"|\x28\xb5\x2f\xfd"  # a frame of zstd
    rb"|WARC/[01]\.\d+\r?\n",
    re.DOTALL,
)
_CORRUPT = "corrupt WARC"
_MANDATORY = ("warc-type", "warc-record-id", "warc-date", "content-length")  # ISO 28500, section 5
_HTML = ("text/html", "application/xhtml+xml")


def read_warc(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The pages of a WARC (``response`` and ``resource`` records of HTML or plain text that were fetched well) and the
    texts of a WET (``conversion`` records), named by the record's number (``:7``); other records are no documents.

    After a record that is broken, reading goes on at the next that begins.
    """
    number = 0
    with piece.source.path.open("rb") as file:
        start: int | None = 0
        lost: Found | None = None  # what is broken after the last good record, unless the next that begins is
        while start is not None:
            good, is_whole = -1, True
            try:
                for record in _records(file, start):
                    number += 1
                    found = _read(record, number, piece, settings)
                    good, is_whole = record.stream_pos, not (isinstance(found, Problem) and found.reason == _CORRUPT)
                    if lost is not None:
                        yield lost
                        lost = None
                    if found is not None:
                        yield f"byte {good}", found
                if is_whole and (problem := _end(piece.source.path, good)) is not None:
                    yield f"byte {max(good, 0)}", problem
                return
            except OSError as error:
                if error.errno is not None:
                    raise  # of the disk, not of the archive
                if good >= 0:
                    lost = f"after byte {good}", Problem(_CORRUPT, str(error))
                else:
                    lost = None
                    yield f"byte {start}", Problem(_CORRUPT, str(error))
            start = find(file, _RECORD, (good if good >= 0 else start) + 1)
        if lost is not None:
            yield lost


def _records(file: BinaryIO, start: int) -> Iterator[Any]:
    from fastwarc.warc import ArchiveIterator

    file.seek(start)
    return iter(ArchiveIterator(file, auto_decode="all"))


def _end(path: Path, last: int) -> Problem | None:
    """What is wrong with the end of the file, where the iterator says nothing: ``last`` is where its last record is."""
    tail = b""
    for chunk in chunks(path, max(last, 0)):
        if isinstance(chunk, Problem):
            return Problem(_CORRUPT, chunk.detail)
        tail = (tail + chunk)[-4:]
    return Problem(_CORRUPT, "the file ends within a record") if tail not in (b"", b"\r\n\r\n") else None


def _read(record: Any, number: int, piece: Piece, settings: ReadSettings) -> Document | Problem | None:
    """The document of a record; None if it is none.

    Raises:
        OSError: the archive is broken.
    """
    from fastwarc.warc import WarcRecordType

    headers = {name.lower(): value for name, value in record.headers.to_tuples()}
    if missing := [name for name in _MANDATORY if name not in headers]:
        return Problem(_CORRUPT, f"a record without {', '.join(missing)}")
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
        return Problem(_CORRUPT, f"{len(data):,} of the record's {expected:,} bytes")
    try:
        text, about = _text(data, kind, record, settings)
    except Problem as problem:
        return problem
    about = {"warc_record_id": headers["warc-record-id"].strip("<>"), **about}
    return Document(
        id=f"{piece.source.name}:{number}",
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
