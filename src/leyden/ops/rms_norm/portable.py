"""The norms with backwards of their own: what is saved is the input and one float32 a row."""

from typing import Any

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean x^2 + eps)^-1/2; dx = r (w dy - x r^2 mean(x w dy)); dw = sum of x r dy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = _wide(x)
        rstd = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        normed = _wide(x) * rstd
        dy = _wide(grads[0])
        dweight = (normed * dy).flatten(0, -2).sum(0)
        dnormed = dy * weight
        mean = (dnormed * normed).mean(-1, keepdim=True)
        dx = dnormed.sub_(normed.mul_(mean)).mul_(rstd)
        return dx.to(x.dtype), dweight.to(weight.dtype), None


class GatedRMSNorm(torch.autograd.Function):
    """y = n w s with n = x r and s = sigmoid(gate); dgate = dy n w s (1 - s)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        wide = _wide(x)
        rstd = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, gate, weight, rstd)
        return (wide * rstd).mul_(weight).mul_(torch.sigmoid(_wide(gate))).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, weight, rstd = ctx.saved_tensors
        normed = _wide(x) * rstd
        opened = torch.sigmoid(_wide(gate))
        dy = _wide(grads[0])
        through = dy * normed
        dweight = (through * opened).flatten(0, -2).sum(0)
        dgate = through.mul_(weight).mul_(opened).mul_(1 - opened)
        dnormed = dy.mul(opened).mul_(weight)
        mean = (dnormed * normed).mean(-1, keepdim=True)
        dx = dnormed.sub_(normed.mul_(mean)).mul_(rstd)
        return dx.to(x.dtype), dgate.to(gate.dtype), dweight.to(weight.dtype), None
