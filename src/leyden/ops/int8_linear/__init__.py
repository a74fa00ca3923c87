"""A linear map whose weight is 8-bit integers with one scale an output row."""

from typing import Any

import torch

from leyden.ops.backend import choose
from leyden.ops.gradients import backward_may_follow
from leyden.ops.int8_linear.portable import int8_linear_portable
from leyden.ops.int8_linear.quantization import Int8Matrices, quantize_rows, row_blocks, widen
from leyden.ops.int8_linear.reference import int8_linear_reference

__all__ = ["Int8Matrices", "int8_linear", "quantize_rows"]


def int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """``y[n, f] = scale[f] * sum_d x[n, d] weight[f, d]``; of its inputs, x alone has a gradient.

    On a CPU no more than a block of the weight is ever held in float, and a row of x gives the same bits whatever other
    rows there are, where their number is a multiple of 16. On Triton it does so among up to 64 rows, and among 65 to
    255; from 256 on, the weight is widened whole for the matrix library.

    Args:
        x: [..., D], a floating dtype.
        weight: [F, D] int8.
        scale: [F] float32.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.

    Returns:
        [..., F] in the dtype of x.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check(x, weight, scale)
    if backward_may_follow(x):
        return _Int8Linear.apply(x, weight, scale, backend)
    return _forward(x, weight, scale, backend)


def _forward(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, backend: str) -> torch.Tensor:
    chosen = choose("int8_linear", backend, x, weight, scale, triton=x.dtype, native=x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    if chosen == "reference":
        y = int8_linear_reference(rows, weight, scale)
    elif chosen == "triton":
        from leyden.ops.int8_linear.launch import int8_linear_triton  # triton, where it is used

        y = int8_linear_triton(rows, weight, scale)
    else:
        y = int8_linear_portable(rows, weight, scale, chosen)
    return y.view(*x.shape[:-1], len(weight))


class _Int8Linear(torch.autograd.Function):
    """``dx[n, d] = sum_f dy[n, f] scale[f] weight[f, d]``: nothing is kept but what is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, backend: str) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return _forward(x, weight, scale, backend)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight, scale), (dy,) = ctx.saved_tensors, grads
        rows = dy.reshape(-1, dy.shape[-1])
        wide = torch.promote_types(dy.dtype, torch.float32)
        dx = torch.zeros(len(rows), weight.shape[1], dtype=wide, device=dy.device)
        for block in row_blocks(*weight.shape):
            matrix = torch.empty(weight[block].shape, dtype=dy.dtype, device=dy.device)
            dx += rows[:, block] @ widen(weight[block], scale[block], matrix)
        return dx.to(dy.dtype).view(*dy.shape[:-1], weight.shape[1]), None, None, None


def _check(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> None:
    if weight.ndim != 2 or scale.shape != weight.shape[:1] or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            "int8_linear: x [..., D], weight [F, D] and scale [F] expected; given "
            f"{tuple(x.shape)}, {tuple(weight.shape)} and {tuple(scale.shape)}."
        )
    if weight.dtype != torch.int8 or not scale.is_floating_point() or not x.is_floating_point():
        raise ValueError(
            "int8_linear: x of a floating dtype, weight int8 and scale float32 expected; given "
            f"{x.dtype}, {weight.dtype} and {scale.dtype}."
        )
