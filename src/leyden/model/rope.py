"""How positions turn queries and keys: the base and the scaling of RoPE, in transformers' field names."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from leyden.core.config import Config
from leyden.ops import rotary_frequencies, yarn_frequencies

_BETA_FAST, _BETA_SLOW = 32.0, 1.0
_FIELDS = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
    ),
}
"""What each type needs, and what else it may say."""


class RopeScaling(Config):
    """How RoPE is stretched over more positions than a model was trained on; a field left None does not belong to the
    type, or has the default of its paper."""

    rope_type: Literal["default", "linear", "yarn"] = "default"
    """``default``: not at all. ``linear``: position interpolation (arXiv 2306.15595). ``yarn``: arXiv 2309.00071."""
    factor: float | None = Field(default=None, ge=1, le=2**20)
    """By how much the context grows."""
    original_max_position_embeddings: int | None = Field(default=None, ge=1, le=2**53)
    """How many positions the model was trained on before."""
    beta_fast: float | None = Field(default=None, gt=0, le=2**20)
    beta_slow: float | None = Field(default=None, gt=0, le=2**20)
    """Turns within the original context: pairs with more than ``beta_fast`` (32) keep their frequency, those with less
    than ``beta_slow`` (1) are slowed down by ``factor``."""
    attention_factor: float | None = Field(default=None, gt=0, le=2**10)
    """What queries and keys are multiplied by, each; None: ``0.1 ln(factor) + 1``, or where both ``mscale`` and
    ``mscale_all_dim`` are given, ``(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)``."""
    mscale: float | None = Field(default=None, gt=0, le=2**10)
    """As DeepSeek-V2 and V3 write YaRN: see ``attention_factor``."""
    mscale_all_dim: float | None = Field(default=None, gt=0, le=2**10)
    """In latent attention alone: the scores are also multiplied by ``(0.1 mscale_all_dim ln(factor) + 1)^2``."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        needed, optional = _FIELDS[self.rope_type]
        said = [name for name in type(self).model_fields if name != "rope_type" and getattr(self, name) is not None]
        missing = [name for name in needed if name not in said]
        if missing:
            raise ValueError(f"rope_type '{self.rope_type}' needs {' and '.join(missing)}")
        foreign = [name for name in said if name not in needed + optional]
        if foreign:
            raise ValueError(f"rope_type '{self.rope_type}' has no {' and no '.join(foreign)}; leave it out")
        if self.rope_type == "yarn" and self._betas[0] < self._betas[1]:
            raise ValueError(f"beta_fast ({self._betas[0]:g}) must be at least beta_slow ({self._betas[1]:g})")
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def _betas(self) -> tuple[float, float]:
        return self.beta_fast or _BETA_FAST, self.beta_slow or _BETA_SLOW

    @property
    def scale(self) -> float:
        """What queries and keys are multiplied by, each."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._stretched(self.mscale) / self._stretched(self.mscale_all_dim)
        return self._stretched(1.0)

    @property
    def score_factor(self) -> float:
        """What the scores of latent attention are multiplied by beyond the scale of its heads."""
        return self._stretched(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _stretched(self, weight: float) -> float:
        """YaRN's ``0.1 weight ln(factor) + 1``; 1 without YaRN."""
        return 0.1 * weight * math.log(self.factor) + 1.0 if self.rope_type == "yarn" and self.factor else 1.0

    def frequencies(self, rotary_dim: int, theta: float, device: torch.device | None = None) -> torch.Tensor:
        """[rotary_dim / 2] float64, in radians a token; arguments as of :func:`leyden.ops.rotary_frequencies`."""
        if self.rope_type == "yarn":
            fast, slow = self._betas
            assert self.factor is not None and self.original_max_position_embeddings is not None, "checked"
            return yarn_frequencies(
                rotary_dim,
                theta,
                factor=self.factor,
                original_positions=self.original_max_position_embeddings,
                beta_fast=fast,
                beta_slow=slow,
                device=device,
            )
        plain = rotary_frequencies(rotary_dim, theta, device)
        return plain if self.factor is None else plain / self.factor

    def __str__(self) -> str:
        said = [f"{name} {value:g}" for name, value in self.model_dump().items() if name != "rope_type"]
        return f"{self.rope_type} ({', '.join(said)})" if said else self.rope_type


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model, which a stage of training may change.

    Attributes:
        theta: the base.
        scaling: how it is stretched.
    """

    theta: float
    scaling: RopeScaling = field(default_factory=RopeScaling)

    @property
    def scale(self) -> float:
        """What queries and keys are multiplied by, each."""
        return self.scaling.scale

    @property
    def score_factor(self) -> float:
        """See :attr:`RopeScaling.score_factor`."""
        return self.scaling.score_factor

    def frequencies(self, rotary_dim: int, device: torch.device | None = None) -> torch.Tensor:
        """[rotary_dim / 2] float64: by how much each pair turns from one position to the next, in radians."""
        return self.scaling.frequencies(rotary_dim, self.theta, device)

    def __str__(self) -> str:
        scaling = "" if self.scaling == RopeScaling() else f", {self.scaling}"
        return f"base {self.theta:,.10g}{scaling}"
