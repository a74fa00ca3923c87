"""The rotary turn in C++; its backward is the turn back, with the same scale."""

from typing import Any

import torch

from leyden.ops.native import call


class NativeRotary(torch.autograd.Function):
    """See :func:`leyden.ops.apply_rotary`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float) -> torch.Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.scale = scale
        return _turn(x, cos, sin, 1.0, scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1.0, ctx.scale), None, None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float, scale: float) -> torch.Tensor:
    B, T, H, D = x.shape
    x = x.contiguous()
    y = torch.empty_like(x)
    call("leyden_rotary", x.dtype, x, cos, sin, sign, scale, B * T, T, H, D, cos.shape[1], y)
    return y
