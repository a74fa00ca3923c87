"""The norms with backwards of their own: what is saved is the inputs and one float32 a row.

With r = (mean x^2 + eps)^-1/2 and n = x r:  y = n w,  dw = sum_rows n dy,  dx = r (dy w - n mean(n dy w)).
Times a gate s = sigmoid(g):  y = n w s,  dg = n dy w s (1 - s), and the rest as above with dy s for dy.
"""

from typing import Any

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """n [..., D] and r [..., 1], in float32 (float64 for float64)."""
    wide = _wide(x)
    mean_square = torch.linalg.vecdot(wide, wide).div_(x.shape[-1])
    rstd = mean_square.add_(eps).rsqrt_().unsqueeze(-1)
    return wide * rstd, rstd


def _backward(
    dy: torch.Tensor, normed: torch.Tensor, product: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dw), given dy, n and ``product`` = n dy; dy is overwritten."""
    dweight = product.reshape(-1, product.shape[-1]).sum(0)
    mean = torch.matmul(product, weight.to(product.dtype)).div_(product.shape[-1]).unsqueeze(-1)
    dx = dy.mul_(weight).addcmul_(normed, mean, value=-1).mul_(rstd)
    return dx, dweight


class RMSNormFunction(torch.autograd.Function):
    """See :func:`leyden.ops.rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        normed, rstd = _normalise(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return normed.mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        normed, dy = x * rstd, grads[0].to(rstd.dtype, copy=True)
        dx, dweight = _backward(dy, normed, normed * dy, weight, rstd)
        return dx.to(x.dtype), dweight.to(weight.dtype), None


class GatedRMSNorm(torch.autograd.Function):
    """See :func:`leyden.ops.gated_rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        normed, rstd = _normalise(x, eps)
        ctx.save_for_backward(x, gate, weight, rstd)
        return normed.mul_(weight).mul_(torch.sigmoid(_wide(gate))).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight, rstd = ctx.saved_tensors
        normed, dy = x * rstd, grads[0].to(rstd.dtype, copy=True)
        opened = torch.sigmoid(_wide(gate))
        product = normed * dy
        dgate = torch.ops.aten.sigmoid_backward(product * weight, opened)
        dx, dweight = _backward(dy.mul_(opened), normed, product.mul_(opened), weight, rstd)
        return dx.to(x.dtype), dgate.to(gate.dtype), dweight.to(weight.dtype), None
