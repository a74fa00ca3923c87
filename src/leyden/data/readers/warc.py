"""Web archives: WARC (pages as they were fetched) and WET (their text)."""

from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

from leyden.data.documents import Document
from leyden.data.readers.charsets import decode_text
from leyden.data.readers.html import extract
from leyden.data.readers.http import Response, declared_type, decoded_body, parse_response, sniffed_type
from leyden.data.readers.piece import Found, Piece
from leyden.data.readers.problem import NOT_A_PAGE, Problem, decode, too_long
from leyden.data.readers.records import Record, records
from leyden.data.readers.rows import time_of
from leyden.data.readers.settings import ReadSettings

_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
_PAGES = ("response", "resource", "conversion")
_ABOUT = ("warcinfo", "request", "metadata")
"""Records that say how others came about: they hold nothing that was fetched."""

_NAMED = 50
"""Kinds of records that are passed over and counted by themselves; those of other kinds are counted together."""


class _NotAPage(Exception):  # noqa: N818 - it says what a record is
    """A record that is read and is no page, such as a picture; its argument says what it is."""


def read_warc(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The pages of a WARC (``response`` and ``resource`` records of HTML or plain text that were fetched well) and the
    texts of a WET (``conversion`` records). What else was fetched is passed over, and counted at the end, by its kind.

    A range gives the records that begin in it, named by the byte where they do (``@1204``); a whole file, named by the
    record's number (``:7``). After a record that is broken, reading goes on at the next that begins.
    """
    numbers = count(1)
    others: Counter[str] = Counter()
    for place, record in records(piece.source.path, piece.start, piece.end, settings.max_document_bytes + 1):
        if isinstance(record, Problem):
            yield place, record
            continue
        label = f":{next(numbers)}" if piece.end is None else f"@{record.place}" + _among_others(record)
        if record.headers["warc-type"].lower() in _ABOUT:
            continue
        try:
            document, broken = _read(record, label, piece, settings)
        except _NotAPage as other:
            kind = str(other)
            others[kind if kind in others or len(others) < _NAMED else "of other kinds"] += 1
        except Problem as problem:
            yield place, problem
        else:
            yield place, document
            if broken:
                yield place, Problem("cut short", f"{broken}; what comes before is a document")
    for kind, number in others.items():
        yield "", Problem(NOT_A_PAGE, kind, count=number)


def _among_others(record: Record) -> str:
    """What tells records apart that are packed together."""
    return f":{record.number}" if record.number > 1 else ""


def _read(record: Record, label: str, piece: Piece, settings: ReadSettings) -> tuple[Document, str]:
    """The document of a record, and where its body broke off, or nothing.

    Raises:
        _NotAPage: it is none.
        Problem: it cannot be read.
    """
    kind = record.headers["warc-type"].lower()
    if kind not in _PAGES:
        raise _NotAPage(f"record: {kind}")
    text, about, broken = (_text_of if kind == "conversion" else _page_of)(record, settings)
    if "warc-record-id" in record.headers:
        about = {"warc_record_id": record.headers["warc-record-id"].strip("<>"), **about}
    if "warc-truncated" in record.headers:
        about = {**about, "warc_truncated": record.headers["warc-truncated"]}
    document = Document(
        id=piece.source.name + label,
        text=text,
        source=piece.source.origin or str(piece.source.path),
        url=record.headers.get("warc-target-uri"),
        time=time_of(record.headers.get("warc-date")),
        metadata=about if settings.metadata == "all" else {},
    )
    return document, broken


def _text_of(record: Record, settings: ReadSettings) -> tuple[str, dict[str, Any], str]:
    """The text of a ``conversion`` record; nothing, nothing."""
    kind, _ = declared_type(record.headers.get("content-type", "text/plain"))
    if kind != "text/plain":
        raise _NotAPage(f"type: {kind}")
    if record.length > settings.max_document_bytes:
        raise too_long(settings.max_document_bytes)
    return decode(record.block), {}, ""


def _page_of(record: Record, settings: ReadSettings) -> tuple[str, dict[str, Any], str]:
    """The text of a page, its metadata, and where its body broke off, or nothing."""
    answer, given = _answer(record)
    if answer.status is not None and not 200 <= answer.status < 300:
        raise _NotAPage(f"status: {answer.status}")
    kind, charset = declared_type(given)
    if "warc-identified-payload-type" in record.headers:
        kind, _ = declared_type(record.headers["warc-identified-payload-type"])
    if kind and kind not in _TYPES:
        raise _NotAPage(f"type: {kind}")
    if record.length > settings.max_document_bytes:
        raise too_long(settings.max_document_bytes)
    body, broken = decoded_body(answer, settings.max_document_bytes)
    if broken and not body:
        raise Problem("corrupt HTTP", broken)
    kind = kind or sniffed_type(body)
    if kind not in _TYPES:
        raise _NotAPage(f"type: {kind}")
    text, about = (decode_text(body, charset), {}) if kind == "text/plain" else extract(body, charset, settings)
    return text, about, broken


def _answer(record: Record) -> tuple[Response, str]:
    """What a server answered, and the type that it gave; a ``resource`` is a body alone."""
    given = record.headers.get("content-type", "")
    is_response = record.headers["warc-type"].lower() == "response"
    if given.lower().startswith("application/http") or (is_response and (not given or record.block[:5] == b"HTTP/")):
        answer = parse_response(record.block)
        return answer, answer.all("content-type")
    return Response(None, (), record.block), given
