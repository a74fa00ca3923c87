"""The result file of a task: one JSON line an item, in the order answered, never half a line.

A run that is killed leaves whole rows and at most the beginning of one more, which the next run removes. A digest in
each row says under which settings it was made, and only rows of the same settings are taken over.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from leyden.core.errors import UserError
from leyden.core.files import disk_errors_are_user_errors
from leyden.evaluate.task import Row

_FIELDS = {"id": str, "settings": str, "prompt_tokens": int, "score": (int, float)}
"""What every row has, and of which type."""


def digest(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the settings in each row."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RowFile:
    """The rows of one task; use it in a ``with``.

    Args:
        path: ``TASK.jsonl``; None keeps the rows in memory alone.
        settings: the digest that rows must have to be taken over, and that new ones get.

    Attributes:
        rows: all rows that there are, by their ids.

    Raises:
        UserError: the file has broken rows, or rows of other settings.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self._path, self._settings = path, settings
        self._file: IO[str] | None = None
        self.rows: dict[str, Row] = {}
        if path is not None and path.exists():
            for number, row in enumerate(read_rows(path), 1):
                if row["settings"] != settings:
                    raise UserError(
                        f"{path} has rows of another model or of other settings (row {number}, '{row['id']}'). Name "
                        "another folder with --out, or remove the file."
                    )
                self.rows[row["id"]] = row

    def __enter__(self) -> Self:
        if self._path is not None:
            with disk_errors_are_user_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _remove_torn_end(self._path)
                self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: Row) -> None:
        """Keep a row, and write it to the disk at once."""
        row = {"id": row["id"], "settings": self._settings, **row}
        self.rows[row["id"]] = row
        if self._file is not None and self._path is not None:
            with disk_errors_are_user_errors(self._path):
                self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
                self._file.flush()


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file; the beginning of one at its end is passed over.

    Raises:
        UserError: a row that is none, by its number and field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [_checked(path, number, line) for number, line in enumerate(lines, 1)]


def _checked(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}, row {number}: it is no JSON object; remove that row, or the file.")
    for name, kind in _FIELDS.items():
        value = row.get(name)
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(
                f"{path}, row {number}: its field '{name}' is missing or not of the right type (given: {value!r}); "
                "remove that row, or the file."
            )
    return row


def _remove_torn_end(path: Path) -> None:
    """Cut the file behind its last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
