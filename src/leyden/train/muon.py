"""Muon: the momentum of a matrix, orthogonalised, is its update (Keller Jordan, kellerjordan.github.io/posts/muon).

``torch.optim.Muon`` is the same rule for one whole matrix a parameter. Here a weight may hold several maps, stacked or
fused (:mod:`leyden.model.matrices`), of which each is orthogonalised by itself; ranks may hold parts of them; masters
are wider than the model; and a step can be skipped without the host's knowing.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from leyden.core.config import Config
from leyden.model.matrices import Fused
from leyden.parallel import Weight, Weights
from leyden.parallel.whole_matrices import WholeMatrices
from leyden.train.masters import MasterGroup

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LEAST_NORM = 1e-7

_SCALES = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


class MuonConfig(Config):
    """The constants of Muon; the defaults are those of its author, with the scale of Moonlight."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    newton_schulz_steps: int = Field(default=5, ge=1, lt=100)
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """What the orthogonalised update of a matrix [n, m] is multiplied by. ``match_rms_adamw``: 0.2 sqrt(max(n, m)), by
    which its entries are as large as AdamW's, so that both share one rate (arXiv 2502.16982, section 2.2).
    ``original``: sqrt(max(1, n / m)), with a rate of its own."""
    lr_factor: float = Field(default=1.0, gt=0)
    """The rate is that of the stage times this."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """In which the iteration multiplies (a float64 model's in float64)."""


def orthogonalised(matrices: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """[k, n, m] to matrices with the same singular vectors and singular values around 1, between about 0.7 and 1.2.

    A quintic Newton-Schulz iteration, on the wide form of each matrix, divided by its Frobenius norm first. A matrix of
    zeros stays one. Computed in ``dtype``, returned in that of ``matrices``.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(_LEAST_NORM)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonGroup(MasterGroup):
    """Weights that Muon moves, with the momentum of each.

    Args:
        weights: of the rank, of which those of ``matrices`` are moved; all ranks of its stage make this together.
        matrices: how the maps lie in each.
        device: as of :class:`MasterGroup`.
        config: the constants.
        weight_decay: of all of them.
    """

    def __init__(
        self,
        weights: Weights,
        matrices: Mapping[str, Fused],
        device: torch.device | None,
        *,
        config: MuonConfig,
        weight_decay: float,
    ) -> None:
        own: dict[str, Weight] = {name: weights[name] for name in matrices}
        super().__init__(own, device)
        self.config = config
        self.momenta = [torch.zeros_like(m) for m in self.masters]
        self._matrices, self._weight_decay = matrices, weight_decay
        self._whole = WholeMatrices(weights, self.names)

    def update(
        self, gradients: list[torch.Tensor], lr: float, divisor: torch.Tensor, skip: torch.Tensor | None
    ) -> None:
        """All ranks of the stage call this."""
        momentum, lr = self.config.momentum, lr * self.config.lr_factor
        for buffer, gradient in zip(self.momenta, gradients, strict=True):
            gradient.div_(divisor.to(gradient.device))
            moved = torch.lerp(buffer, gradient, 1 - momentum)
            buffer.copy_(moved if skip is None else torch.where(skip.to(buffer.device), buffer, moved))
            if self.config.nesterov:
                gradient.lerp_(buffer, momentum)
            else:
                gradient.copy_(buffer)
        self._whole.apply(dict(zip(self.names, gradients, strict=True)), self._update_of)
        for master, update in zip(self.masters, gradients, strict=True):
            decay = torch.tensor(1 - lr * self._weight_decay, dtype=master.dtype, device=master.device)
            if skip is not None:
                here = skip.to(master.device)
                decay, update = torch.where(here, 1.0, decay), torch.where(here, 0.0, update)
            master.mul_(decay).sub_(update, alpha=lr)

    def _update_of(self, name: str, momentum: torch.Tensor) -> torch.Tensor:
        """Of a whole weight, or of some of its experts."""
        matrices = self._matrices[name].split(momentum)
        dtype = torch.promote_types(getattr(torch, self.config.dtype), _at_least(momentum.dtype))
        found = orthogonalised(matrices, self.config.newton_schulz_steps, dtype)
        return self._matrices[name].join(found * _SCALES[self.config.scale](*matrices.shape[-2:]), momentum.shape)

    def moments(self) -> Mapping[str, list[torch.Tensor]]:
        return {"momentum": self.momenta}


def _at_least(dtype: torch.dtype) -> torch.dtype:
    """Float64 where the masters are; else what any choice is wider than."""
    return dtype if dtype == torch.float64 else torch.bfloat16
