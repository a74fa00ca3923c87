"""The learning rate of every step: warm-up, then constant, then a decay to the final rate.

MiniMax-Text-01 warms up over 500 steps to 2e-4, stays, and ends with an exponential decay to 3e-5; its later stages
use a cosine from 1e-5 to 1e-6 or a constant rate (arXiv 2501.08313, sections 4.3 and 5).
"""

import math
from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from leyden.core.config import Config

_DECAYS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, floor: 1.0,
    "linear": lambda progress, floor: 1.0 - (1.0 - floor) * progress,
    "cosine": lambda progress, floor: floor + (1.0 - floor) * (1.0 + math.cos(math.pi * progress)) / 2,
    "exponential": lambda progress, floor: floor**progress,
}
"""The share of the peak rate, from 1 at progress 0 to ``floor`` at progress 1."""


class LearningRate(Config):
    """A learning rate that depends on nothing but the step and the number of steps.

    These are the keys of a recipe's ``[[stage]]`` that say it, and their one declaration.
    """

    lr: float = Field(default=1e-3, gt=0)
    """The peak rate."""
    schedule: Literal["constant", "linear", "cosine", "exponential"] = "exponential"
    """The shape of the decay at the end."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises linearly to the peak."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """The share of all steps, at the end, in which the rate decays; 1: all that warm-up leaves."""
    final_lr: float | None = Field(default=None, ge=0)
    """The rate of the last step; 0 for a linear or cosine decay alone. None: a tenth of the peak."""
    expert_bias_rate: float = Field(default=0.001, ge=0)
    """By how much a step moves the biases by which routers choose (``router = "sigmoid_groups"``) against the load of
    their experts; DeepSeek-V3's is 0.001 (arXiv 2412.19437, section 4.2)."""
    expert_bias_share: float = Field(default=1.0, ge=0, le=1)
    """The share of all steps, at the beginning, in which they move; DeepSeek-V3 stopped after 97 % of its tokens."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.final_lr is not None and self.final_lr > self.lr:
            raise ValueError(f"{self._owner}final_lr ({self.final_lr}) must not exceed lr ({self.lr})")
        if self.final_lr == 0 and self.schedule == "exponential":
            raise ValueError(
                f"{self._owner}an exponential decay never comes to final_lr = 0; take a linear or cosine schedule, or "
                "a rate above 0"
            )
        return self

    @property
    def _owner(self) -> str:
        """What an error opens with: whose rate this is."""
        return ""

    def peak_at(self, step: int) -> float:
        """The rate of ``step`` without warm-up and decay."""
        return self.lr

    def expert_bias_rate_at(self, step: int, total_steps: int) -> float:
        """By how much ``step`` (from 0) of ``total_steps`` moves the biases of routers."""
        return self.expert_bias_rate if step < math.ceil(self.expert_bias_share * total_steps) else 0.0

    def decay_steps(self, total_steps: int) -> int:
        """How many of ``total_steps`` the rate is to decay in, at their end."""
        return math.ceil(self.decay_share * total_steps)

    def lr_at(self, step: int, total_steps: int) -> float:
        """The rate of ``step`` (from 0) of ``total_steps``; the last step has exactly the final rate."""
        peak = self.peak_at(step)
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        decay_steps = min(self.decay_steps(total_steps), total_steps - self.warmup_steps)
        steps_into_decay = step + 1 - (total_steps - decay_steps)
        if steps_into_decay <= 0:
            return peak
        floor = 0.1 if self.final_lr is None else self.final_lr / peak
        return peak * _DECAYS[self.schedule](steps_into_decay / decay_steps, floor)
