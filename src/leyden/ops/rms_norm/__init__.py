"""Root-mean-square norm: alone, times a sigmoid gate, and of a scaled residual sum."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating
from leyden.ops.rms_norm.native import NativeRMSNorm
from leyden.ops.rms_norm.portable import GatedRMSNorm, RMSNormFunction
from leyden.ops.rms_norm.reference import (
    gated_rms_norm_reference,
    residual_rms_norm_reference,
    rms_norm_reference,
)

__all__ = ["gated_rms_norm", "residual_rms_norm", "rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, backend: str = "auto") -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dim, computed in float32 (float64 for float64).

    Args:
        x: [..., D].
        weight: [D], float32 whatever the dtype of x.
        eps: added to the mean square.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot run.
    """
    _check("rms_norm", x, weight, x)
    chosen = choose("rms_norm", backend, x, weight, triton=x.dtype, native=x.dtype)
    if chosen == "reference":
        return rms_norm_reference(x, weight, eps)
    if chosen == "native":
        return NativeRMSNorm.apply(x, None, weight.float(), eps)
    if chosen == "triton":
        from leyden.ops.rms_norm.launch import rms_norm_triton  # triton, where it is used

        return rms_norm_triton(x, weight, eps)
    return RMSNormFunction.apply(x, weight, eps)


def gated_rms_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, backend: str = "auto"
) -> torch.Tensor:
    """``rms_norm(x, weight) * sigmoid(gate)``: the output norm and gate of lightning attention.

    Args:
        x, gate: [..., D], one dtype.
        weight: [D], float32.
        eps: added to the mean square.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot run.
    """
    _check("gated_rms_norm", x, weight, gate)
    chosen = choose("gated_rms_norm", backend, x, gate, weight, triton=x.dtype, native=x.dtype)
    if chosen == "reference":
        return gated_rms_norm_reference(x, gate, weight, eps)
    if chosen == "native":
        return NativeRMSNorm.apply(x, gate.to(x.dtype), weight.float(), eps)
    if chosen == "triton":
        from leyden.ops.rms_norm.launch import rms_norm_triton  # triton, where it is used

        return rms_norm_triton(x, weight, eps, gate=gate.to(x.dtype))
    return GatedRMSNorm.apply(x, gate, weight, eps)


def residual_rms_norm(
    kept: torch.Tensor,
    added: torch.Tensor,
    weight: torch.Tensor,
    alpha: float,
    beta: float,
    eps: float,
    backend: str = "auto",
) -> torch.Tensor:
    """``rms_norm(kept * alpha + added * beta, weight)``: a DeepNorm residual (arXiv 2203.00555) and the norm after it.

    The sum itself is not returned: a post-norm model keeps what is normed.

    Args:
        kept, added: [..., D], one dtype.
        weight: [D], float32.
        alpha, beta: the factors of the two.
        eps: added to the mean square.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``. In ``"torch"`` and
            ``"native"`` the sum is rounded to the dtype before it is normed, and it is held in memory.

    Returns:
        [..., D] in the dtype of kept.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check("residual_rms_norm", kept, weight, added, other="added")
    check_floating("residual_rms_norm", kept=kept, added=added)
    chosen = choose("residual_rms_norm", backend, kept, added, weight, triton=kept.dtype, native=kept.dtype)
    if chosen == "reference":
        return residual_rms_norm_reference(kept, added, weight, alpha, beta, eps)
    if chosen == "triton":
        from leyden.ops.rms_norm.launch import rms_norm_triton  # triton, where it is used

        return rms_norm_triton(kept, weight, eps, added=added, alpha=alpha, beta=beta)
    return rms_norm(torch.add(added if beta == 1 else added * beta, kept, alpha=alpha), weight, eps, chosen)


def _check(op: str, x: torch.Tensor, weight: torch.Tensor, second: torch.Tensor, other: str = "gate") -> None:
    if weight.ndim != 1 or weight.shape != x.shape[-1:] or second.shape != x.shape:
        first = "x" if other == "gate" else "kept"
        given = f"{first} {tuple(x.shape)}, weight {tuple(weight.shape)}, {other} {tuple(second.shape)}"
        raise ValueError(f"{op}: {first} and {other} [..., D] and weight [D] expected; given {given}.")
    check_floating(op, x=x)
    check_floating(op, weight=weight)
