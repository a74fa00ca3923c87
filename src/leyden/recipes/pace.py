"""A stage given in minutes has as many steps as fitted when they were timed; the user is told if they take longer."""

import os
import statistics
import time
from collections import deque
from itertools import pairwise

from leyden.core.log import say
from leyden.train import BatchSchedule, StepResult, TrainState

_STEPS = 10
"""So many steps in a row decide."""
_FACTOR = 2.0


class Pace:
    """A callback of the loop that says once when steps take twice as long as was planned.

    Args:
        name: of the stage.
        minutes, steps: its length.
        batch: its size at every step. Steps take longer in proportion to their tokens.
        go_on: what an interrupted user is told to do.
    """

    def __init__(self, name: str, minutes: float, steps: int, batch: BatchSchedule, go_on: str) -> None:
        self._name, self._batch, self._go_on = name, batch, go_on
        self._tokens = batch.tokens_before(steps)
        self._planned = minutes * 60 / self._tokens  # seconds a token
        self._ends: deque[float] = deque(maxlen=_STEPS + 1)
        self._told = False

    def __call__(self, state: TrainState, result: StepResult) -> None:
        """Note the end of a step."""
        self._ends.append(time.monotonic())
        if self._told or len(self._ends) <= _STEPS:
            return
        planned = self._planned * result.tokens
        seconds = statistics.median(after - before for before, after in pairwise(self._ends))
        if seconds < _FACTOR * planned:
            return
        self._told = True
        left = (self._tokens - self._batch.tokens_before(state.stage_step)) / result.tokens * seconds / 60
        advice = ""
        if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
            advice = f". With OMP_WAIT_POLICY=PASSIVE in the environment it loses less: stop by Ctrl-C. {self._go_on}"
        say(
            f"stage '{self._name}': a step takes {seconds:.2f} s, and {planned:.2f} s were planned: the rest will "
            f"take about {left:.0f} minutes. Other programs seem to use the processors{advice}"
        )
