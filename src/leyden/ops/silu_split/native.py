"""SiLU in C++: ``native.cpp``, one pass in each direction."""

from typing import Any

import torch

from leyden.ops.native import call


class NativeSilu(torch.autograd.Function):
    """``x * sigmoid(x)`` of any shape."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        call("leyden_silu", x.dtype, x, x.numel(), y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        call("leyden_silu_backward", x.dtype, grads[0].contiguous(), x, x.numel(), dx)
        return dx


def silu_split_native(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.silu_split`."""
    q, k, v = NativeSilu.apply(qkv).chunk(3, dim=-1)
    return q, k, v
