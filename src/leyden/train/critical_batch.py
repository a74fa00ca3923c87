"""The critical batch size as a power law of the loss, fitted to the noise scale that a run measures.

The noise scale grows while the loss falls, as a power of it (arXiv 2001.08361, section 5.1). MiniMax-01 fits such a law
to small models and doubles the batch of the large one wherever the law has doubled (arXiv 2501.08313, section 4.3).
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leyden.core.errors import UserError

_LEAST_POINTS, _LEAST_RANGE = 10, 1.1
"""Of the law: points, and the largest loss as a multiple of the smallest."""


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
    def exponent_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the exponent; None where two points leave nothing to estimate it from."""
        if self.num_points < 3:
            return None
        half = _quantile(self.num_points - 2) * self._deviation / math.sqrt(self._spread)
        return self.exponent - half, self.exponent + half

    def interval_at(self, loss: float) -> tuple[float, float] | None:
        """The 95 % interval of :meth:`at`."""
        if self.num_points < 3:
            return None
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

    It is fitted anew at every measurement, to all of the run. Nothing is decided before the law has some points, over
    losses that differ, and falls as it should.
    """

    def __init__(self) -> None:
        self._stage = self._doublings = 0
        self._losses: list[float] = []
        self._noise_scales: list[float] = []

    def enter_stage(self, stage: int) -> None:
        """Begin with the first batch of another stage."""
        if stage != self._stage:
            self._stage, self._doublings = stage, 0

    @property
    def factor(self) -> int:
        """How many times the first batch of the stage the next one is."""
        return 2**self._doublings

    def see(self, loss: float, noise_scale: float, batch: float, *, doubles: bool) -> float | None:
        """Take in a measurement.

        Args:
            loss: the average over the steps that the noise scale is of.
            noise_scale: in labels.
            batch: labels of the step.
            doubles: whether the next batch is to be twice as large where the law says twice the batch or more.

        Returns:
            The critical batch at this loss, in labels; None while nothing is decided.
        """
        if loss <= 0:
            return None
        self._losses.append(loss)
        self._noise_scales.append(noise_scale)
        if len(self._losses) < _LEAST_POINTS or max(self._losses) < _LEAST_RANGE * min(self._losses):
            return None
        law = fit_critical_batch(self._losses, self._noise_scales)
        if law.exponent <= 0:
            return None
        critical = law.at(loss)
        self._doublings += int(doubles and critical >= 2 * batch)
        return critical

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {
            "stage": self._stage,
            "doublings": self._doublings,
            "losses": list(self._losses),
            "noise_scales": list(self._noise_scales),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._stage, self._doublings = state["stage"], state["doublings"]
        self._losses, self._noise_scales = list(state["losses"]), list(state["noise_scales"])


def _quantile(freedom: int) -> float:
    """Of Student's distribution: 95 % lie within it, on either side of 0."""
    stats: Any = importlib.import_module("scipy.stats")  # slow to import
    return float(stats.t.ppf(0.975, freedom))
