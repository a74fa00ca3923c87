"""Files of one JSON line a step, each step once, whatever interrupted the run: ``metrics.jsonl`` and its neighbours."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leyden.core.files import atomic_file, disk_errors_are_user_errors
from leyden.train.sinks import Sink


class StepLog:
    """Appends lines to a file. The file is closed after each, so that a crash of the process loses none.

    Args:
        path: the file; it is made by the first line.
        last: the step that the run goes on from; lines of later steps, those of no step, and a line torn by a crash
            are removed.
        writes: False where another rank writes the file; this object then does nothing.
        counts: the name of the number that the lines have and that rises.
    """

    def __init__(self, path: Path, *, last: int, writes: bool = True, counts: str = "step") -> None:
        self._path, self._writes, self._counts = path, writes, counts
        self.keep_until(last)

    def keep_until(self, last: int) -> None:
        """Remove the lines of later steps, and those of no step."""
        if self._writes and self._path.exists():
            kept = [record for record in read_metrics(self._path) if record.get(self._counts, math.inf) <= last]
            with atomic_file(self._path) as part:
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

    def sync(self) -> None:
        """Make sure that all lines are on the disk, so that no checkpoint is ahead of them."""
        if not self._writes or not self._path.exists():
            return
        with self._path.open("rb") as file:
            os.fsync(file.fileno())


class MetricsLog(StepLog):
    """``metrics.jsonl``, whose lines go to sinks as well.

    Args:
        path, last, writes: as of :class:`StepLog`.
        sinks: what else gets every line.
    """

    def __init__(self, path: Path, *, last: int, writes: bool = True, sinks: Sequence[Sink] = ()) -> None:
        super().__init__(path, last=last, writes=writes)
        self._sinks = sinks if writes else ()

    def append(self, record: dict[str, Any]) -> None:
        """As :meth:`StepLog.append`, and to the sinks."""
        super().append(record)
        for sink in self._sinks:
            sink.append(record)


def finite(value: float) -> float | None:
    """The value as JSON has it: None stands for what is not finite."""
    return value if math.isfinite(value) else None


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
