"""What a benchmark found: rows with goals, as a table and as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from leyden.core.files import atomic_file


@dataclass(frozen=True)
class ResultRow:
    """One line of a comparison.

    Attributes:
        work: what was done.
        unit: of ``theirs`` and ``ours``.
        theirs: the baseline's figure; None where there is nothing to compare with.
        ours: this library's figure.
        ratio: how many times better ours is (faster, or smaller); None without a baseline.
        judged: ``"ratio"`` where goals speak of the ratio, ``"ours"`` where they speak of our figure itself.
        at_least: what must be reached; None where nothing must.
        aim: what is aimed at.
        at_most: True where a goal is met from below.
        floor: the best that the machine allows, in ``unit``: model FLOPs over the measured peak of matrix products.
        how: what each side ran, where that needs saying.
    """

    work: str
    unit: str
    theirs: float | None
    ours: float
    ratio: float | None = None
    judged: Literal["ratio", "ours"] = "ratio"
    at_least: float | None = None
    aim: float | None = None
    at_most: bool = False
    floor: float | None = None
    how: str = ""

    @property
    def verdict(self) -> str:
        """``"aim met"``, ``"met"``, ``"aim missed"``, ``"missed"``, or nothing where there is no goal."""
        value = self.ratio if self.judged == "ratio" else self.ours
        if value is None or self.at_least is None is self.aim:
            return ""
        if self.aim is not None and self._reaches(value, self.aim):
            return "aim met"
        if self.at_least is None:
            return "aim missed"
        return "met" if self._reaches(value, self.at_least) else "missed"

    def _reaches(self, value: float, goal: float) -> bool:
        return value <= goal if self.at_most else value >= goal


@dataclass(frozen=True)
class BenchResult:
    """A finished benchmark.

    Attributes:
        name: of the benchmark.
        rows: what was measured.
        settings: the shape, lengths, repeats and threads.
        checks: what was verified before anything was timed.
        machine: as :func:`leyden.evaluate.machine` gives it.
        versions: of the libraries compared.
        command: how to run it again.
        notes: lines below the table.
        sides: what the columns of ``theirs`` and ``ours`` are called.
    """

    name: str
    rows: list[ResultRow]
    settings: dict[str, Any]
    checks: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    notes: list[str] = field(default_factory=list)
    sides: tuple[str, str] = ("theirs", "ours")

    def save(self, path: Path) -> None:
        """Write it as JSON, each row with its verdict."""
        data = asdict(self)
        for row, plain in zip(self.rows, data["rows"], strict=True):
            plain["verdict"] = row.verdict
        with atomic_file(path) as part:
            part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


_STYLES = {"aim met": "bold green", "met": "green", "aim missed": "yellow", "missed": "bold red"}


_TABLE_WIDTH = 118


def show(result: BenchResult, output: Path | None) -> None:
    """Print the table, behind the result as JSON where a path is given."""
    if output is not None:
        result.save(output)
    Console(width=max(Console().width, _TABLE_WIDTH)).print(render(result))


def render(result: BenchResult) -> Group:
    """The result as a table with its notes, for a rich console."""
    table = Table(title=f"leyden bench {result.name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("work (tokens/s where no unit is named)", no_wrap=True)
    for name in (*result.sides, "ratio", "floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal")
    for row in result.rows:
        table.add_row(
            row.work if row.unit == "tokens/s" else f"{row.work}, {row.unit}",
            _number(row.theirs),
            _number(row.ours),
            _number(row.ratio, "x"),
            _number(row.floor),
            _goal(row),
        )
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    machine = f"{result.machine['cpu']}, {result.settings['threads']} threads; {versions}"
    notes = [machine, *result.notes, *(f"{row.work}: {row.how}" for row in result.rows if row.how)]
    return Group(table, *(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in notes))


def _goal(row: ResultRow) -> Text:
    """Whether the goal was reached, and what must be reached and is aimed at."""
    suffix = "x" if row.judged == "ratio" else ""
    parts = [] if row.at_least is None else [_number(row.at_least, suffix) + " at most" * row.at_most]
    if row.aim is not None:
        parts.append(f"aim {_number(row.aim, suffix)}" + " at most" * row.at_most)
    goal = ", ".join(parts)
    return Text(f"{row.verdict} ({goal})" if goal else "", style=_STYLES.get(row.verdict, ""))


def _number(value: float | None, suffix: str = "") -> str:
    """Three significant digits, whole thousands with separators; nothing for None."""
    if value is None:
        return ""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}") + suffix
