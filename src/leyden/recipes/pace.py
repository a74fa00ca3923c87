"""A stage given in minutes has as many steps as fitted when they were timed; the user is told if they take longer."""

import os
import statistics
import time
from collections import deque
from itertools import pairwise

from leyden.core.log import say
from leyden.train import StepResult, TrainState

_STEPS = 10
"""So many steps in a row decide."""
_FACTOR = 2.0


class Pace:
    """A callback of the loop that says once when steps take twice as long as was planned.

    Args:
        stage: its name.
        minutes, steps: its length.
        go_on: what an interrupted user is told to do.
    """

    def __init__(self, stage: str, minutes: float, steps: int, go_on: str) -> None:
        self._stage, self._minutes, self._steps, self._go_on = stage, minutes, steps, go_on
        self._ends: deque[float] = deque(maxlen=_STEPS + 1)
        self._told = False

    def __call__(self, state: TrainState, result: StepResult) -> None:
        """Note the end of a step."""
        self._ends.append(time.monotonic())
        if self._told or len(self._ends) <= _STEPS:
            return
        planned = self._minutes * 60 / self._steps
        seconds = statistics.median(after - before for before, after in pairwise(self._ends))
        if seconds < _FACTOR * planned:
            return
        self._told = True
        left = (self._steps - state.stage_step) * seconds / 60
        advice = ""
        if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
            advice = f". With OMP_WAIT_POLICY=PASSIVE in the environment it loses less: stop by Ctrl-C. {self._go_on}"
        say(
            f"stage '{self._stage}': a step takes {seconds:.2f} s, and {planned:.2f} s were planned: the rest will "
            f"take about {left:.0f} minutes. Other programs seem to use the processors{advice}"
        )
