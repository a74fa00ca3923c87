"""The root-mean-square norm as a module."""

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
