"""Files of JSON: an object a line, or one array of objects."""

import codecs
import json
import re
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from leyden.data.documents import Document
from leyden.data.readers.packed import chunks, line_range, lines
from leyden.data.readers.piece import Found, Piece
from leyden.data.readers.problem import MAX_BRACKETS, Problem, decode, too_long
from leyden.data.readers.rows import document_of
from leyden.data.readers.settings import ReadSettings
from leyden.data.sources import plain_suffix

_SCAN = json.JSONDecoder().raw_decode
_BETWEEN = re.compile(r"[\s,]*")


def read_jsonl(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The documents of the lines that begin in the piece; blank lines are passed over.

    A range names its documents by the byte where their line begins (``@120``), so that names do not depend on how the
    file is cut; a whole file, by line (``:3``). A ``.json`` that is not a file of lines holds values after each other,
    or a list of them, named by their number.
    """
    path, limit = piece.source.path, settings.max_document_bytes
    if not is_lines(path):
        for number, item in enumerate(values(chunks(path), limit), 1):
            yield f"value {number}", _document(item, piece, f":{number}", settings)
        return
    if piece.end is None:
        found = ((f"line {n}", f":{n}", line) for n, (_, line) in enumerate(lines(chunks(path), limit), 1))
    else:
        found = ((f"byte {n}", f"@{n}", line) for n, line in line_range(path, piece.start, piece.end, limit))
    for place, label, line in found:
        if isinstance(line, Problem):
            yield line.place or place, line
        elif line.strip():
            yield place, _line(line, piece, label, settings)


def is_lines(path: Path) -> bool:
    """Whether a file is read line by line: all but a ``.json`` whose first line is no object."""
    if plain_suffix(path) != ".json":
        return True
    head = next(iter(chunks(path)), b"")
    if isinstance(head, Problem):
        return True  # which reports it
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    first, newline, _ = head.partition(b"\n")
    if not head.startswith(b"{") or not newline:
        return not head.startswith(b"[")
    try:
        parse(first)
    except Problem:
        return False
    return True


def values(pieces: Iterable[bytes | Problem], limit: int) -> Iterator[Any]:
    """JSON values after each other, or the items of one list, as they are read.

    Raises:
        Problem: the bytes are broken, a value is not JSON, or longer than ``limit``; what follows it is not read.
    """
    decoder, held, wanted = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    is_list, error = None, ""
    for piece in chain(pieces, (None,)):
        if isinstance(piece, Problem):
            raise piece
        try:
            held += decoder.decode(piece or b"", piece is None)
        except UnicodeDecodeError as unknown:
            raise Problem("not UTF-8", unknown.reason) from None
        if is_list is None and (held := held.lstrip()):
            is_list = held.startswith("[")
            held = held[is_list:]
        if piece is None or len(held) >= wanted:
            held, error = yield from _scan(held, limit)
            wanted = 2 * len(held)  # a long value is parsed again each time that twice as much is there
        if len(held) > limit:
            raise too_long(limit)
    if held.strip(" \t\r\n,") != ("]" if is_list else ""):
        raise Problem("not JSON", error if held else "the list is not closed")


def _scan(text: str, limit: int) -> Generator[Any, None, tuple[str, str]]:
    """The values at the beginning of ``text``; returns what follows them, and why that is not another."""
    place = 0
    _not_too_wide(text)
    while True:
        start = _BETWEEN.match(text, place).end()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            value, place = _SCAN(text, start)
        except (ValueError, RecursionError) as error:  # it is not all there yet, perhaps
            return text[start:], str(error)
        if place - start > limit:
            raise too_long(limit)
        yield value


def _line(line: bytes, piece: Piece, label: str, settings: ReadSettings) -> Document | Problem:
    try:
        return _document(parse(line), piece, label, settings)
    except Problem as problem:
        problem.place = ""  # a byte of the line says less than the line
        return problem


def _document(row: Any, piece: Piece, label: str, settings: ReadSettings) -> Document | Problem:
    try:
        if not isinstance(row, dict):
            raise Problem("not a JSON object", type(row).__name__)
        return document_of(row, piece.source, label, settings)
    except Problem as problem:
        return problem


def parse(data: bytes) -> Any:
    """JSON as Python objects.

    Raises:
        Problem: it is not UTF-8, not JSON, or nested too deeply or too widely.
    """
    text = decode(data)
    _not_too_wide(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for a number of more than 4,300 digits
        raise Problem("not JSON", str(error)) from None


def _not_too_wide(text: str) -> None:
    """Raise a Problem if the objects of ``text`` would take far more memory than it does."""
    brackets = text.count("[") + text.count("{")
    if brackets > MAX_BRACKETS:
        raise Problem("nested too widely", f"{brackets:,} opening brackets, more than {MAX_BRACKETS:,}")
