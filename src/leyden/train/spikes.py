"""Loss spikes: steps whose loss or gradient norm is far above those of the steps before.

A limit is the running median plus so many robust standard deviations (1.4826 times the median absolute deviation), so
that earlier spikes hardly move it. The norm of a gradient is compared by its logarithm, since it varies by factors.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from pydantic import Field

from leyden.core.config import Config

_OF_NORMAL = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""
_LEAST_LOSS, _LEAST_LOG_NORM = 0.001, 0.02
"""The least deviation that is told from none: of the loss as a share of its median, and of the norm's logarithm."""

SPIKES = "spikes.jsonl"
"""In the folder of a run; it is there once there was a spike."""


class SpikeSettings(Config):
    """What a spike is, and what becomes of its step: the table ``[train.spikes]`` of a recipe."""

    action: Literal["log", "skip", "rewind"] = "log"
    """``log``: it is noted. ``skip``: its update is not applied. ``rewind``: training goes on from the newest
    checkpoint, without the batches since then."""
    threshold: float = Field(default=6.0, gt=0)
    """Robust standard deviations above the median."""
    window_steps: int = Field(default=128, ge=8)
    """Steps that median and deviation are of; a quarter of them must have been taken."""
    max_rewinds: int = Field(default=3, ge=1)
    """How often training may go back to one checkpoint; then it stops."""


@dataclass(frozen=True)
class StepLimits:
    """What a step's mean loss and gradient norm may be.

    Attributes:
        loss, grad_norm: more is a spike.
        skip: whether the update of a spike is left out.
    """

    loss: float = math.inf
    grad_norm: float = math.inf
    skip: bool = False


class SpikeWatch:
    """The losses and norms of the newest steps, and how many spikes there were.

    Attributes:
        num_spikes: that were logged in the run.
    """

    def __init__(self, settings: SpikeSettings) -> None:
        self.settings = settings
        self.num_spikes = 0
        self._stage = 0
        self._losses: deque[float] = deque(maxlen=settings.window_steps)
        self._norms: deque[float] = deque(maxlen=settings.window_steps)
        self._rewinds = (-1, 0)  # to which step, and how often

    def enter_stage(self, stage: int) -> None:
        """Forget the steps of another stage, whose losses are not comparable."""
        if stage != self._stage:
            self._stage = stage
            self._losses.clear()
            self._norms.clear()

    def limits(self) -> StepLimits:
        """For the next step; none where too few steps were taken."""
        skip = self.settings.action == "skip"
        if len(self._losses) < self.settings.window_steps // 4:
            return StepLimits(skip=skip)
        loss, spread = _centre(self._losses)
        log_norm, log_spread = _centre([math.log(norm) for norm in self._norms])
        spread, log_spread = max(spread, _LEAST_LOSS * abs(loss)), max(log_spread, _LEAST_LOG_NORM)
        threshold = self.settings.threshold
        return StepLimits(loss + threshold * spread, math.exp(log_norm + threshold * log_spread), skip)

    def see(self, loss: float, grad_norm: float) -> None:
        """Take in a step."""
        if math.isfinite(loss) and math.isfinite(grad_norm) and grad_norm > 0:
            self._losses.append(loss)
            self._norms.append(grad_norm)

    def may_rewind(self, step: int) -> bool:
        """Note that training is to go back to ``step``; False where it did so too often."""
        to, count = self._rewinds
        self._rewinds = (step, count + 1 if to == step else 1)
        return self._rewinds[1] <= self.settings.max_rewinds

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return {
            "num_spikes": self.num_spikes,
            "stage": self._stage,
            "losses": list(self._losses),
            "norms": list(self._norms),
            "rewinds": list(self._rewinds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, of whatever window."""
        self.num_spikes, self._stage = state["num_spikes"], state["stage"]
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        to, count = state["rewinds"]
        self._rewinds = (to, count)


def _centre(values: Sequence[float] | deque[float]) -> tuple[float, float]:
    """The median and the robust standard deviation."""
    middle = median(values)
    return middle, _OF_NORMAL * median(abs(value - middle) for value in values)
