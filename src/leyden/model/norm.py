"""The root-mean-square norm as a module."""

from collections.abc import Iterator

import torch
from torch import nn

from leyden.model.float32 import Float32Module
from leyden.ops import gated_rms_norm, residual_rms_norm, rms_norm


class RMSNorm(Float32Module):
    """``x / rms(x) * weight`` with a float32 weight [D]."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, dtype=torch.float32))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D], in the dtype of x."""
        return rms_norm(x, self.weight, self.eps)

    def of_residual(self, kept: torch.Tensor, added: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        """The norm of ``kept * alpha + added * beta``, [..., D] each, where the sum itself is not kept."""
        return residual_rms_norm(kept, added, self.weight, alpha, beta, self.eps)

    def gated(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The norm of x times ``sigmoid(gate)``, [..., D] each."""
        return gated_rms_norm(x, gate, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class GroupedRMSNorm(RMSNorm):
    """Every one of ``groups`` equal parts of the last dim normed by itself, times a weight [D] over all of them.

    What the released code of Ring-linear-2.0 calls ``group_norm_size`` is their number.

    Attributes:
        groups: of this rank.
    """

    def __init__(self, dim: int, eps: float, groups: int) -> None:
        super().__init__(dim, eps)
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D], in the dtype of x."""
        return torch.cat([rms_norm(part, weight, self.eps) for part, weight in self._parts(x)], dim=-1)

    def gated(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The norm of x times ``sigmoid(gate)``, [..., D] each."""
        gates = gate.chunk(self.groups, dim=-1)
        parts = zip(self._parts(x), gates, strict=True)
        return torch.cat([gated_rms_norm(part, by, weight, self.eps) for (part, weight), by in parts], dim=-1)

    def of_residual(self, kept: torch.Tensor, added: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        raise NotImplementedError("no residual is normed in groups")

    def _parts(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(x.chunk(self.groups, dim=-1), self.weight.chunk(self.groups), strict=True)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


class DividedRMSNorm(RMSNorm):
    """``x / rms(x) * weight / divisor``: what is divided is the weight, so that results are rounded once."""

    def __init__(self, dim: int, eps: float, divisor: float) -> None:
        super().__init__(dim, eps)
        self.divisor = divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D], in the dtype of x."""
        return rms_norm(x, self.weight / self.divisor, self.eps)

    def of_residual(self, kept: torch.Tensor, added: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        return residual_rms_norm(kept, added, self.weight / self.divisor, alpha, beta, self.eps)

    def gated(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return gated_rms_norm(x, gate, self.weight / self.divisor, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, divisor={self.divisor:g}"
