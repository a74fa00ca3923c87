"""Files of columns: Parquet, and the Arrow files of a saved Hugging Face dataset."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from leyden.core.limited import LimitedProcess, LimitReached
from leyden.data.readers.nested import TURNS
from leyden.data.readers.packed import FREE_BYTES, MAX_RATIO
from leyden.data.readers.piece import Found, Piece
from leyden.data.readers.problem import Problem
from leyden.data.readers.rows import columns_to_read, document_of
from leyden.data.readers.settings import ReadSettings


class Column(NamedTuple):
    """A column of a file: its type in words, whether it is text, and whether it holds bytes (pictures, sound)."""

    name: str
    kind: str
    is_text: bool
    holds_bytes: bool


Row = dict[str, Any] | tuple[str, str]
"""The columns of a row; or reason and detail why it is set aside."""

_TOO_MUCH = "unpacks to too much"
_STEP = 256
"""Rows that are decoded at once, unless they take too much memory."""
_MEMORY_BYTES = 512 << 20
_SECONDS = 60
_ROW_BYTES = 256
"""What a row counts for beside its contents, where a file's rows are weighed with what the file has."""


def row_group_ranges(path: Path, size: int, shard_bytes: int) -> Iterator[tuple[int, int, int | None]]:
    """Ranges of row groups of up to ``shard_bytes``, or of one group: bytes, first group, and last (excluded).

    A file whose footer cannot be read is one range: reading it will say so.
    """
    try:
        sizes = [stored for _, stored in _look(path, "parquet", ReadSettings())[1]]
    except Exception:  # reading it will say so
        yield size, 0, None
        return
    start = held = 0
    for group, group_bytes in enumerate(sizes):
        if group > start and held + group_bytes > shard_bytes:
            yield held, start, group
            start, held = group, 0
        held += group_bytes
    yield held, start, len(sizes)


def read_parquet(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """A document a row, named by the row's number in the file (``:7``); a row group that is broken is set aside."""
    columns, groups = _look(piece.source.path, "parquet", settings)
    table = _Table(piece, "parquet", _columns(columns, settings), settings)
    first = 1 + sum(rows for rows, _ in groups[: piece.start])
    for group in range(piece.start, len(groups) if piece.end is None else piece.end):
        try:
            yield from table.documents(group, first)
        except Problem as problem:
            if problem.reason == _TOO_MUCH:
                raise
            yield f"row group {group}", problem
        first += groups[group][0]


def read_arrow(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """A document a row of a stream or file of Arrow batches, named by the row's number."""
    columns, _ = _look(piece.source.path, "arrow", settings)
    yield from _Table(piece, "arrow", _columns(columns, settings), settings).documents(0, 1)


class _Table:
    """A file that is being read in the child process.

    Args:
        piece: of which file.
        format: ``parquet`` or ``arrow``.
        columns: to read.
        settings: of its source.
    """

    def __init__(self, piece: Piece, format: str, columns: tuple[str, ...], settings: ReadSettings) -> None:
        self._piece, self._format, self._columns, self._settings = piece, format, columns, settings
        self._given = 0
        self._most = FREE_BYTES + MAX_RATIO * piece.source.path.stat().st_size

    def documents(self, group: int, first: int) -> Iterator[Found]:
        """The rows of one row group, whose first is row ``first`` of the file.

        Raises:
            Problem: the group is broken or takes too much memory, or the file gives too much.
        """
        for number, row in enumerate(self._rows(group), first):
            place = f"row {number}"
            try:
                yield place, self._document(row, number)
            except Problem as problem:
                yield place, problem

    def _document(self, row: Row, number: int) -> Any:
        if isinstance(row, tuple):
            raise Problem(*row)
        whole = self._settings.rows == "whole"
        row = {name: _filled(value) if whole or name in TURNS else value for name, value in row.items()}
        return document_of(row, self._piece.source, f":{number}", self._settings)

    def _rows(self, group: int) -> Iterator[Row]:
        path = self._piece.source.path
        step, first = _STEP, 0
        while True:
            try:
                asked = ("rows", str(path), self._format, group, self._columns, self._settings.text, step, first)
                rows, num_bytes, is_last = _call(path, self._format, self._settings, *asked)
            except LimitReached as reached:
                if step == 1:
                    raise Problem(f"corrupt {self._format}", f"from row {first + 1} of it on: {reached}") from None
                step = 1  # slower, and all that is in memory is one row
                continue
            if is_last:
                return
            yield from rows
            first += len(rows)
            self._given += num_bytes + _ROW_BYTES * len(rows)
            if self._given > self._most:
                detail = f"{path.stat().st_size:,} bytes are {self._given:,} or more; the rest is not read"
                raise Problem(_TOO_MUCH, detail, f"row group {group}")


def _look(path: Path, format: str, settings: ReadSettings) -> tuple[list[Column], list[tuple[int, int]]]:
    """A file's columns, and of each row group its rows and the bytes that it is stored in."""
    try:
        columns, groups = _call(path, format, settings, "look", str(path), format)
    except LimitReached as reached:
        raise Problem(f"corrupt {format}", str(reached)) from None
    return [Column(*column) for column in columns], groups


def _call(path: Path, format: str, settings: ReadSettings, *arguments: Any) -> Any:
    """An answer of the child process.

    Raises:
        Problem: the library cannot read the file.
        OSError: the file cannot be opened.
        LimitReached: it took too much memory or time, or the library crashed.
    """
    # An Arrow file is mapped, which counts as memory though it takes none; in powers of two, to start few processes.
    mapped = 1 << path.stat().st_size.bit_length() if format == "arrow" else 0
    limit = min(settings.max_document_bytes, 1 << 30)
    try:
        return _process(limit, max(mapped, 1 << 28)).call(*arguments)
    except ValueError as error:
        raise Problem(f"corrupt {format}", str(error)) from None


@functools.lru_cache(maxsize=4)
def _process(limit: int, mapped: int) -> LimitedProcess:
    """The child process that reads tables. A document may be there several times: packed, as bytes, and as text."""
    memory = _MEMORY_BYTES + 8 * limit + mapped
    return LimitedProcess(Path(__file__).with_name("tables.py"), (limit,), seconds=_SECONDS, memory_bytes=memory)


def _columns(columns: list[Column], settings: ReadSettings) -> tuple[str, ...]:
    """The columns to read, without those that hold bytes (pictures, sound)."""
    by_name = {column.name: column for column in columns}
    if len(by_name) < len(columns):
        raise Problem("two columns of one name", ", ".join(column.name for column in columns)[:400])
    names = columns_to_read(list(by_name), settings)
    if settings.text in names and settings.rows in ("auto", "text") and not by_name[settings.text].is_text:
        raise Problem(f'"{settings.text}" is not a string', f"a column of type {by_name[settings.text].kind}")
    return tuple(name for name in names if not by_name[name].holds_bytes)


def _filled(value: Any) -> Any:
    """A turn without its fields that are null: a column gives all fields to all turns, and to all calls of tools."""
    if isinstance(value, dict):
        return {name: _filled(item) for name, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value
