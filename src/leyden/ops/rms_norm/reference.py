"""The norms by their formulas."""

import torch


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See :func:`leyden.ops.rms_norm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def gated_rms_norm_reference(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See :func:`leyden.ops.gated_rms_norm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return (normed * torch.sigmoid(gate.to(wide.dtype))).to(x.dtype)


def residual_rms_norm_reference(
    kept: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, alpha: float, beta: float, eps: float
) -> torch.Tensor:
    """See :func:`leyden.ops.residual_rms_norm`."""
    dtype = torch.promote_types(kept.dtype, torch.float32)
    return rms_norm_reference(kept.to(dtype) * alpha + added.to(dtype) * beta, weight, eps).to(kept.dtype)
