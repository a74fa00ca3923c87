"""Logging and progress: one logger, one console on standard error, progress bars with rate and time left."""

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from leyden.core.launch import launched
from leyden.core.printable import printable

console = Console(stderr=True, quiet=launched().rank > 0)
"""Of several ranks the first speaks for all; what another alone has to say goes through :func:`speak_up`."""

_NARROW = 90
"""Columns of a terminal, below which a bar shows less."""
_LINE_SECONDS = 15
"""Between two lines of a progress bar that is not on a terminal."""


def logger(name: str) -> logging.Logger:
    """The logger of a module: ``logger(__name__)``."""
    return logging.getLogger(name)


@functools.cache
def log_once(name: str, message: str) -> None:
    """Log ``message`` at level INFO the first time it is seen in this process."""
    logging.getLogger(name).info(message)


def say(text: str) -> None:
    """Print one line for the user to standard error, as it is: no markup, no wrapping.

    Names and texts that others wrote may stand in it: control characters are shown, not sent to the terminal.
    """
    console.print(printable(text, lines=True), markup=False, highlight=False, soft_wrap=True)


class LineHandler(logging.Handler):
    """Puts records on the console, a line each; rich's own handler folds them to a terminal's width, in files too."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            level = (f"{record.levelname:<8} ", f"logging.level.{record.levelname.lower()}")
            text = printable(self.format(record), lines=True)
            console.print(Text.assemble(level, text), highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def speak_up() -> None:
    """Let a rank that is not the first be heard from here on: something happened to it alone."""
    console.quiet = False


@contextmanager
def progress(title: str, total: float | None, unit: str = "") -> Iterator["Bar"]:
    """A progress bar with rate and time left, on standard error; where that is not a terminal, a line now and then.

    Args:
        title: what is being done.
        total: how many units there are; None where it is not known.
        unit: what one unit is, shown beside the rate (``"tokens"``).
    """
    with Progress(*_columns(unit), console=console, transient=False, disable=not console.is_terminal) as bars:
        bar = Bar(bars, title, total, unit)
        yield bar
        bar.finish()


def _columns(unit: str) -> list[ProgressColumn]:
    """What a bar shows; on a narrow terminal the count and the time left, and of the note as much as has room."""
    whole = Column(no_wrap=True)
    count = MofNCompleteColumn(table_column=whole) if unit == "steps" else TextColumn("{task.percentage:>3.0f}%")
    left = TimeRemainingColumn(table_column=whole)
    if console.width >= _NARROW:
        bar = BarColumn(bar_width=max(10, min(40, console.width - 80)))
        rate = TextColumn("{task.fields[rate]}", table_column=whole)
        note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        return [TextColumn("{task.description}"), bar, count, rate, TimeElapsedColumn(), left, note]
    title = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=18))
    room = console.width - 18 - 13 - 8 - 3  # beside the title, a count of six digits a side, the time left, and gaps
    short = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=room))
    return [title, count, left] if room < 8 else [title, count, left, short]


class Bar:
    """One running progress bar."""

    def __init__(self, bars: Progress, title: str, total: float | None, unit: str) -> None:
        self._bars = bars
        self._unit = unit
        self._task = bars.add_task(title, total=total, rate="", note="")
        self._told_at = time.monotonic()

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """Move on by ``amount`` units; ``note`` is shown at the end of the line."""
        self._bars.advance(self._task, amount)
        task = self._bars.tasks[self._task]
        fields: dict[str, str] = {"rate": _rate(task.speed, self._unit)}
        if note is not None:
            fields["note"] = note
        self._bars.update(self._task, **fields)  # pyright: ignore[reportArgumentType]
        if self._bars.disable and time.monotonic() - self._told_at > _LINE_SECONDS:
            self._told_at = time.monotonic()
            say(_line(self._bars.tasks[self._task]))

    def finish(self) -> None:
        """All is done: what was passed over on the way counts, too, so that the bar ends full."""
        task = self._bars.tasks[self._task]
        if task.total is not None and not task.finished:
            self._bars.update(self._task, completed=task.total)


def _line(task: Task) -> str:
    """A bar in words, for a log file."""
    done = f"{task.percentage:.0f} %" if task.total else f"{task.completed:,.0f}"
    left = f"{task.time_remaining:.0f} s left" if task.time_remaining is not None else ""
    parts = [f"{task.description}: {done}", task.fields["rate"], left, task.fields["note"]]
    return ", ".join(part for part in parts if part)


def _rate(speed: float | None, unit: str) -> str:
    if speed is None:
        return ""
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if speed >= scale:
            return f"{speed / scale:.1f}{prefix} {unit}/s"
    return f"{speed:.1f} {unit}/s"
