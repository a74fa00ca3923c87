"""The critical batch size as a power law of the loss, fitted to the noise scale that a run measures.

The noise scale grows while the loss falls, as a power of it (arXiv 2001.08361, section 5.1). MiniMax-01 fits such a law
to small models and doubles the batch of the large one wherever the law has doubled (arXiv 2501.08313, section 4.3).
Here a run can fit it to itself, and double its own batch.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leyden.core.errors import UserError
from leyden.train.noise_scale import NoiseSample

_OF_A_POINT = 10
"""Measurements of each point that a run fits the law to."""
_LEAST_POINTS, _LEAST_RANGE = 6, 1.1
"""Of a run's law: points, and the largest loss as a multiple of the smallest."""


@dataclass(frozen=True)
class CriticalBatchLaw:
    """``batch = scale * loss ** -exponent``, fitted by least squares of the logarithms.

    Attributes:
        scale: the batch at a loss of 1.
        exponent: how steeply the batch grows as the loss falls.
        num_points: that it was fitted to.
    """

    scale: float
    exponent: float
    num_points: int
    _mean: float
    _spread: float
    _deviation: float

    def at(self, loss: float) -> float:
        """The critical batch at this loss."""
        return self.scale * loss**-self.exponent

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """The 95 % interval of the exponent; two points leave nothing to estimate it from, and it is boundless."""
        if self.num_points < 3:
            return -math.inf, math.inf
        half = _quantile(self.num_points - 2) * self._deviation / math.sqrt(self._spread)
        return self.exponent - half, self.exponent + half

    def interval_at(self, loss: float) -> tuple[float, float]:
        """The 95 % interval of :meth:`at`; of two points boundless."""
        if self.num_points < 3:
            return 0.0, math.inf
        error = self._deviation * math.sqrt(1 / self.num_points + (math.log(loss) - self._mean) ** 2 / self._spread)
        factor = math.exp(_quantile(self.num_points - 2) * error)
        return self.at(loss) / factor, self.at(loss) * factor


def fit_critical_batch(losses: Sequence[float], batches: Sequence[float]) -> CriticalBatchLaw:
    """Fit the law.

    Args:
        losses: in nats, above 0; at least two different ones.
        batches: the noise scale, or another critical batch, at each.

    Raises:
        UserError: values that are not positive, or losses that are all equal.
    """
    if len(losses) != len(batches) or not all(math.isfinite(x) and x > 0 for x in (*losses, *batches)):
        raise UserError("a critical batch is fitted to as many losses as batches, all of them above 0.")
    if len(set(losses)) < 2:
        raise UserError(f"a power law needs at least two different losses; given {len(set(losses))}.")
    x, y = np.log(np.asarray(losses, np.float64)), np.log(np.asarray(batches, np.float64))
    mean, spread = float(x.mean()), float(((x - x.mean()) ** 2).sum())
    slope = float(((x - mean) * (y - y.mean())).sum()) / spread
    offset = float(y.mean()) - slope * mean
    count = len(x)
    deviation = math.sqrt(float(((y - offset - slope * x) ** 2).sum()) / max(1, count - 2))
    return CriticalBatchLaw(math.exp(offset), -slope, count, mean, spread, deviation)


class CriticalBatch:
    """The law as far as a run knows it, and how often a stage's batch was doubled by it.

    Every point of the law is of some successive measurements, and no measurement is in two, so that the points are as
    independent as an interval takes them to be: each is the average loss, and the quotient of the averages of the two
    estimates that the noise scale is made of. A point whose averages are not positive says nothing and is left out.

    The batch may double where the newest point was just added and

    - there are at least 6 points, whose losses differ by 10 %;
    - the whole 95 % interval of the exponent is above 0: the batch does rise as the loss falls;
    - the lower end of the 95 % interval of the law, at the loss of the newest point, is at least twice the batch: what
      the batch becomes is not above the critical one either.
    """

    def __init__(self) -> None:
        self._stage = self._doublings = 0
        self._points: list[tuple[float, float]] = []
        self._measured: list[tuple[float, float, float, float]] = []

    def enter_stage(self, stage: int) -> None:
        """Begin with the first batch of another stage."""
        if stage != self._stage:
            self._stage, self._doublings = stage, 0

    @property
    def factor(self) -> int:
        """How many times the first batch of the stage the next one is."""
        return 2**self._doublings

    @property
    def law(self) -> CriticalBatchLaw | None:
        """As fitted to all points; None while there are too few, or their losses are too near to each other."""
        losses = [loss for loss, _ in self._points]
        if len(losses) < _LEAST_POINTS or max(losses) < _LEAST_RANGE * min(losses):
            return None
        return fit_critical_batch(losses, [noise_scale for _, noise_scale in self._points])

    @property
    def now(self) -> tuple[float, float] | None:
        """What the law says at the loss of the newest point, and the lower end of its interval, in labels."""
        law = self.law
        return None if law is None else (law.at(self._points[-1][0]), law.interval_at(self._points[-1][0])[0])

    def __str__(self) -> str:
        """The law, and what it says now, in words."""
        law = self.law
        if law is None:
            return f"too little is known of the critical batch: {len(self._points)} points"
        loss = self._points[-1][0]
        batches, exponents = law.interval_at(loss), law.exponent_interval
        return (
            f"the critical batch is {law.at(loss):,.0f} labels at a loss of {loss:.3f} (95 %: {batches[0]:,.0f} to "
            f"{batches[1]:,.0f}), and grows as loss^-{law.exponent:.2f} ({exponents[0]:.2f} to {exponents[1]:.2f}; "
            f"{law.num_points} points)"
        )

    def see(self, sample: NoiseSample, loss: float, batch: float) -> bool:
        """Take in a measurement, and say whether the batch may double.

        Args:
            sample: of the noise.
            loss: of the same step, in nats.
            batch: its labels.
        """
        self._measured.append((sample.trace, sample.square, loss, batch))
        if len(self._measured) < _OF_A_POINT:
            return False
        trace, square, loss, batch = (math.fsum(each) / _OF_A_POINT for each in zip(*self._measured, strict=True))
        self._measured = []
        if min(trace, square, loss) <= 0:
            return False
        self._points.append((loss, trace / square))
        law = self.law
        if law is None:
            return False
        (least_exponent, _), (least, _) = law.exponent_interval, law.interval_at(loss)
        return least_exponent > 0 and least >= 2 * batch

    def double(self) -> None:
        """From the next step on."""
        self._doublings += 1

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {
            "stage": self._stage,
            "doublings": self._doublings,
            "points": [list(point) for point in self._points],
            "measured": [list(measured) for measured in self._measured],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; a checkpoint of before there were such points begins without any."""
        self._stage, self._doublings = state["stage"], state["doublings"]
        self._points = [(loss, noise_scale) for loss, noise_scale in state.get("points", [])]
        self._measured = [tuple(measured) for measured in state.get("measured", [])]


def _quantile(freedom: int) -> float:
    """Of Student's distribution: 95 % lie within it, on either side of 0."""
    stats: Any = importlib.import_module("scipy.stats")  # slow to import
    return float(stats.t.ppf(0.975, freedom))
