"""What is launched for the rotary turn in Triton; its gradient is the turn back, with the same scale."""

from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, power_of_two
from leyden.ops.rotary import kernels as jitted

kernels = Kernels(jitted)

_TILE = 4096
"""Elements of a program's tile: 32 heads of 128."""


@torch.library.custom_op("leyden::rotary", mutates_args=())
def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float, inverse: bool) -> torch.Tensor:
    """x [B, T, H, D] times ``scale``, turned by the angles of cos and sin [T, R/2], or back."""
    (B, T, H, D), half = x.shape, cos.shape[1]
    y = torch.empty(B, T, H, D, dtype=x.dtype, device=x.device)
    if y.numel():
        rows = max(1, _TILE // power_of_two(D))
        num_blocks = blocks(T * H, rows)
        kernels.turn[(B * num_blocks,)](
            x, cos, sin, y, scale, T * H, num_blocks, *x.stride()[:3],
            H=H, D=D, HALF=half, BHALF=power_of_two(half), BREST=power_of_two(D - 2 * half),
            ROWS=rows, INVERSE=inverse, num_warps=4,
        )  # fmt: skip
    return y


@_turn.register_fake
def _(x, cos, sin, scale, inverse):
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, cos, sin, ctx.scale, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _turn(last_dim_contiguous(dy), cos, sin, ctx.scale, not ctx.inverse), None, None, None, None


_turn.register_autograd(_differentiate, setup_context=_save)


def apply_rotary_triton(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float) -> torch.Tensor:
    """See :func:`leyden.ops.apply_rotary`."""
    return _turn(last_dim_contiguous(x), cos.float().contiguous(), sin.float().contiguous(), float(scale), False)
