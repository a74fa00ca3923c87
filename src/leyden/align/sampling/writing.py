"""Files of results, whole or not there at all."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leyden.core.files import atomic_file, disk_errors_are_user_errors


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with disk_errors_are_user_errors(path), atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path: Path, told: Mapping[str, Any]) -> None:
    """Write one JSON object, for people as well; errors as of :func:`write_rows`."""
    with disk_errors_are_user_errors(path), atomic_file(path) as part:
        part.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
