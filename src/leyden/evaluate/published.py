"""Published rows of a task: read from JSON or JSON lines, and checked field by field."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from leyden.core.errors import UserError

_T = TypeVar("_T")
_SUFFIXES = (".json", ".jsonl")
_MAX_NAMED = 5
"""How many broken rows a message names."""
_MAX_SHOWN = 80
"""Characters of a wrong value in a message."""


class BrokenRowError(UserError):
    """A row that is not as published: the message names file, row and field."""


@dataclass(frozen=True)
class PublishedRow:
    """One row, and where it stands.

    Attributes:
        where: the file, and the line or the place in its list, from 1.
        fields: as they were read.
    """

    where: str
    fields: dict[str, Any]

    def broken(self, field: str, allowed: str, given: Any = None) -> BrokenRowError:
        """The error for a field: what it is (or the part of it that is ``given``), and what is allowed."""
        given = self.fields.get(field) if given is None else given
        shown = "missing" if given is None else repr(given)
        shown = shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 3] + "..."
        return BrokenRowError(f"{self.where}: its field '{field}' is {shown}, and has to be {allowed}")

    def text(self, field: str, allowed: Collection[str] | None = None) -> str:
        """A field that is a text, not an empty one, and one of ``allowed`` where that is given.

        Raises:
            BrokenRowError: it is none.
        """
        value = self.fields.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.broken(field, "a text")
        if allowed is not None and value not in allowed:
            raise self.broken(field, f"one of {', '.join(allowed)}")
        return value

    def count(self, field: str) -> int:
        """A field that is a whole number from 1 on.

        Raises:
            BrokenRowError: it is none.
        """
        value = self.fields.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.broken(field, "a whole number from 1 on")
        return value


def find_files(path: Path) -> list[Path]:
    """The file itself, or the files of JSON in a folder, by name.

    Raises:
        UserError: there are none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise UserError(
            f"{path} has no files that end in {' or '.join(_SUFFIXES)}; give --file a file or such a folder."
        )
    return files


def read_json(path: Path) -> Any:
    """A file that is one JSON value.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}.") from None


def read_published(path: Path) -> tuple[list[PublishedRow], bool]:
    """The rows of one file, and whether it is cut short.

    A file is a list in JSON, or one JSON object a line. The last line of a file that was cut off within a row has no
    end and is no JSON: it is left out, and the second value says so.

    Raises:
        UserError: the file cannot be read, or a row is no JSON object.
    """
    data = _read(path)
    if data.lstrip()[:1] == b"[":
        rows = read_json(path)
        return [_row(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)], False
    rows, lines = [], data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return rows, True
            raise BrokenRowError(f"{where} is no JSON: {error}; correct or remove it.") from None
        rows.append(_row(where, row))
    return rows, False


def parse_rows(rows: Sequence[PublishedRow], parse: Callable[[PublishedRow], _T]) -> list[_T]:
    """What ``parse`` makes of every row.

    Raises:
        UserError: rows that it calls broken; the message names them all up to a few, and counts the rest.
    """
    parsed, broken = [], []
    for row in rows:
        try:
            parsed.append(parse(row))
        except BrokenRowError as error:
            broken.append(str(error))
    if broken:
        more = f"; {len(broken) - _MAX_NAMED} more are broken" if len(broken) > _MAX_NAMED else ""
        raise UserError(f"{'; '.join(broken[:_MAX_NAMED])}{more}. Correct or remove these rows.")
    return parsed


def _row(where: str, row: Any) -> PublishedRow:
    if not isinstance(row, dict):
        raise BrokenRowError(f"{where} is no JSON object; correct or remove it.")
    return PublishedRow(where, row)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--file: {path} cannot be read: {error.strerror}.") from None
