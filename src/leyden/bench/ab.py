"""Interleaved A/B timing of two worker processes."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.bench.worker import Worker
from leyden.core.log import Bar

Call = tuple[Any, ...]
"""A method of a worker's object and its arguments; it returns the seconds that it took."""


@dataclass(frozen=True)
class FastestVariant:
    """Which of their variants was taken, and the seconds of each that was tried."""

    variant: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        slower = ", ".join(f"{v} {1000 * s:.0f} ms" for v, s in self.seconds.items() if v != self.variant)
        return f"theirs is '{self.variant}', the fastest (tried: {slower})"


class ABBenchmark:
    """Measures both sides so that a change of the machine's pace hits both alike.

    Args:
        theirs, ours: the sides.
        bar: moves on by 1 after each turn of both, and after each choice of a variant.
    """

    def __init__(self, theirs: Worker, ours: Worker, bar: Bar) -> None:
        self.theirs, self.ours = theirs, ours
        self._bar = bar

    def medians(self, theirs: Call, ours: Call, repeats: int, unmeasured: int = 1) -> tuple[float, float]:
        """Median seconds of a call on each side, A B A B ..., after ``unmeasured`` calls of each."""
        seconds: list[tuple[float, float]] = []
        for _ in range(unmeasured + repeats):
            seconds.append((self.theirs.call(*theirs), self.ours.call(*ours)))
            self._bar.advance(note=str(theirs[0]))
        first, second = zip(*seconds[unmeasured:], strict=True)
        return statistics.median(first), statistics.median(second)

    def alone(self, calls: Sequence[Call], repeats: int) -> list[float]:
        """Median seconds of several calls on our side, in turn, after one unmeasured call of each."""
        rounds: list[list[float]] = []
        for _ in range(repeats + 1):
            rounds.append([self.ours.call(*call) for call in calls])
            self._bar.advance(note=str(calls[0][0]))
        return [statistics.median(seconds) for seconds in zip(*rounds[1:], strict=True)]

    def fastest(self, work: str, call: Callable[[str], Call]) -> FastestVariant:
        """The variant of theirs that does ``call(variant)`` soonest; of two tries the second counts."""
        seconds = {}
        for variant in self.theirs.call("variants", work):
            self.theirs.call(*call(variant))
            seconds[variant] = self.theirs.call(*call(variant))
        self._bar.advance(note=f"the fastest way to {work}")
        return FastestVariant(min(seconds, key=seconds.__getitem__), seconds)
