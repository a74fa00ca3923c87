"""Root-mean-square norm, alone and times a sigmoid gate."""

import torch

from leyden.ops.rms_norm.portable import GatedRMSNorm, RMSNorm

__all__ = ["gated_rms_norm", "rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dim, computed in float32 (float64 for float64).

    Args:
        x: [..., D].
        weight: [D], float32 whatever the dtype of x.
        eps: added to the mean square.

    Returns:
        [..., D] in the dtype of x.
    """
    return RMSNorm.apply(x, weight, eps)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``rms_norm(x, weight) * sigmoid(gate)``: the output norm and gate of lightning attention.

    Args:
        x, gate: [..., D], one dtype.
        weight: [D], float32.
        eps: added to the mean square.

    Returns:
        [..., D] in the dtype of x.
    """
    return GatedRMSNorm.apply(x, gate, weight, eps)
