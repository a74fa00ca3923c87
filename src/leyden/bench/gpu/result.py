"""The rows of ``leyden bench gpu``, as a table of plain text and as JSON; needs nothing beyond the standard library."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leyden.core.files import atomic_file


@dataclass(frozen=True)
class OpRow:
    """One line of the table.

    Attributes:
        work: what was done.
        seconds: the median; None where it was not measured.
        floor: seconds that the bytes or the operations take at least, whichever is longer.
        bound: which of them: ``"bytes"`` or ``"FLOPs"``.
        value: what the goal speaks of, in ``unit``.
        unit: ``"x floor"``, ``"x faster"``, ``"of copy bandwidth"``, ...
        goal: what must be reached; None where nothing must.
        at_most: True where the goal is met from below.
        note: what else a reader must know.
        missing: why it was not measured.
        red: the files of red tests that the row rests on; its figures may be of wrong results.
    """

    work: str
    seconds: float | None = None
    floor: float | None = None
    bound: str = ""
    value: float | None = None
    unit: str = "x floor"
    goal: float | None = None
    at_most: bool = False
    note: str = ""
    missing: str = ""
    red: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """The time over the floor."""
        return None if self.seconds is None or not self.floor else self.seconds / self.floor

    @property
    def verdict(self) -> str:
        """``"met"``, ``"missed"``, ``"not measured"``, ``"red tests"``, or nothing where there is no goal."""
        if self.missing:
            return "not measured"
        if self.red:
            return "red tests"
        if self.goal is None or self.value is None:
            return ""
        return "met" if (self.value <= self.goal if self.at_most else self.value >= self.goal) else "missed"

    @property
    def distance(self) -> float | None:
        """How many times the goal, or else the floor, it is away from; at most 1 where it is reached."""
        if self.goal is not None and self.value is not None:
            return self.value / self.goal if self.at_most else self.goal / max(self.value, 1e-12)
        return self.ratio


def worst_first(rows: Sequence[OpRow]) -> list[OpRow]:
    """By distance; those of which none is known come last, in their order."""
    return sorted(rows, key=lambda row: -(row.distance or 0.0))


@dataclass(frozen=True)
class OpsResult:
    """A run, finished or not.

    Attributes:
        rows: what was measured, the worst first.
        machine: the GPU and its driver, the measured speeds, the date, the commit.
        versions: of torch and triton.
        command: how to run it again.
        notes: what was left out.
        tests: what came of the tests, a file each.
        finished: whether all of it was done.
    """

    rows: list[OpRow]
    machine: dict[str, Any]
    versions: dict[str, str | None]
    command: str
    notes: list[str]
    tests: list[Any]
    finished: bool

    @property
    def has_red_tests(self) -> bool:
        """Whether a test failed."""
        return any(tested.outcome == "red" for tested in self.tests)

    def save(self, path: Path) -> None:
        """Write it as JSON, each row with its ratio, distance and verdict."""
        data = {"name": "gpu", **asdict(self)}
        for row, plain in zip(self.rows, data["rows"], strict=True):
            plain.update(ratio=row.ratio, distance=row.distance, verdict=row.verdict)
        with atomic_file(path) as part:
            part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def table(self) -> str:
        """Aligned columns, then what was left out and what else must be known."""
        lines = [("work", "time", "floor", "by", "x floor", "judged", "goal", "")]
        lines += [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        text = ["  ".join(line).rstrip() for line in padded]
        text.insert(1, "-" * max(map(len, text)))
        notes = [f"{row.work}: {row.note}" for row in self.rows if row.note]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        machine = (
            f"{self.machine['gpu']}: copies {self.machine.get('bytes_per_second', 0) / 1e12:.3g} TB/s, "
            f"multiplies {self.machine.get('flops_per_second', 0) / 1e12:.3g} TFLOP/s (bfloat16), both measured; "
            f"{versions}"
        )
        red = [f"{tested.file} is {tested.outcome}: {line}" for tested in self.tests for line in tested.failures]
        return "\n".join([*text, "", machine, *self.notes, *red, *notes])


def _cells(row: OpRow) -> tuple[str, ...]:
    if row.missing:
        return (row.work, "", _time(row.floor), row.bound, "", row.missing, _goal(row), row.verdict)
    value = "" if row.value is None or row.unit == "x floor" else f"{_number(row.value)} {row.unit}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return (row.work, _time(row.seconds), _time(row.floor), row.bound, ratio, value, _goal(row), row.verdict)


def _goal(row: OpRow) -> str:
    return "" if row.goal is None else f"{'<=' if row.at_most else '>='} {row.goal:g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
