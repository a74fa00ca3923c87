"""``metrics.jsonl``: one JSON line an optimizer step, each step once, whatever interrupted the run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leyden.core.files import atomic_file, disk_errors_are_user_errors
from leyden.train.sinks import Sink


class MetricsLog:
    """Appends lines to a file. The file is closed after each, so that a crash of the process loses none.

    Args:
        path: the file.
        last_step: the step that the run goes on from; lines of later steps, and a line torn by a crash, are removed.
        writes: False where another rank writes the file; this object then does nothing.
        sinks: what else gets every line.
    """

    def __init__(self, path: Path, *, last_step: int, writes: bool = True, sinks: Sequence[Sink] = ()) -> None:
        self._path, self._writes, self._sinks = path, writes, sinks
        if not writes:
            return
        kept = [record for record in read_metrics(path) if record["step"] <= last_step]
        with atomic_file(path) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write one line; the values are JSON values without NaN or infinity.

        Raises:
            UserError: the disk is full.
        """
        if not self._writes:
            return
        with disk_errors_are_user_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        for sink in self._sinks:
            sink.append(record)

    def sync(self) -> None:
        """Make sure that all lines are on the disk, so that no checkpoint is ahead of them."""
        if not self._writes:
            return
        with self._path.open("rb") as file:
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file up to the first that is torn; none where the file does not exist."""
    records = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if line.endswith(b"\n"):
            records.append(record)
    return records
