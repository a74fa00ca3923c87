"""``metrics.jsonl``: one JSON line an optimizer step, each step once, whatever interrupted the run."""

import json
import os
from pathlib import Path
from typing import Any, Self

from leyden.core.files import atomic_file, disk_full_is_a_user_error


class MetricsLog:
    """Appends lines to a file, each flushed when written. A context manager.

    Args:
        path: the file.
        last_step: the step that the run goes on from; lines of later steps, and a line torn by a crash, are removed.
    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        self._path = path
        _keep_steps_until(path, last_step)
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write one line; the values are JSON values without NaN or infinity.

        Raises:
            UserError: the disk is full.
        """
        with disk_full_is_a_user_error(self._path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Make sure that all lines are on the disk, so that no checkpoint is ahead of them."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics file; none where the file does not exist."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # the end of a line that a crash tore
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _keep_steps_until(path: Path, last_step: int) -> None:
    records = read_metrics(path)
    kept = [record for record in records if record["step"] <= last_step]
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
