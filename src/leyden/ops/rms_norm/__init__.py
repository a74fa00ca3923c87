"""Root-mean-square norm, alone and times a sigmoid gate."""

import torch

from leyden.ops.backend import choose
from leyden.ops.rms_norm.native import NativeRMSNorm
from leyden.ops.rms_norm.portable import GatedRMSNorm, RMSNorm
from leyden.ops.rms_norm.reference import gated_rms_norm_reference, rms_norm_reference

__all__ = ["gated_rms_norm", "rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, backend: str = "auto") -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dim, computed in float32 (float64 for float64).

    Args:
        x: [..., D].
        weight: [D], float32 whatever the dtype of x.
        eps: added to the mean square.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"native"``.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot run.
    """
    _check("rms_norm", x, weight, x)
    chosen = choose("rms_norm", backend, x.device, native=x.dtype)
    if chosen == "reference":
        return rms_norm_reference(x, weight, eps)
    if chosen == "native":
        return NativeRMSNorm.apply(x, None, weight.float(), eps)
    return RMSNorm.apply(x, weight, eps)


def gated_rms_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, backend: str = "auto"
) -> torch.Tensor:
    """``rms_norm(x, weight) * sigmoid(gate)``: the output norm and gate of lightning attention.

    Args:
        x, gate: [..., D], one dtype.
        weight: [D], float32.
        eps: added to the mean square.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"native"``.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot run.
    """
    _check("gated_rms_norm", x, weight, gate)
    chosen = choose("gated_rms_norm", backend, x.device, native=x.dtype)
    if chosen == "reference":
        return gated_rms_norm_reference(x, gate, weight, eps)
    if chosen == "native":
        return NativeRMSNorm.apply(x, gate.to(x.dtype), weight.float(), eps)
    return GatedRMSNorm.apply(x, gate, weight, eps)


def _check(op: str, x: torch.Tensor, weight: torch.Tensor, gate: torch.Tensor) -> None:
    if weight.shape != x.shape[-1:] or gate.shape != x.shape:
        given = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, gate {tuple(gate.shape)}"
        raise ValueError(f"{op}: x and gate [..., D] and weight [D] expected; given {given}.")
