"""A linear map whose weight is 8-bit integers with one scale an output row."""

import torch

from leyden.ops.backend import choose
from leyden.ops.int8_linear.portable import int8_linear_portable
from leyden.ops.int8_linear.quantization import Int8Matrices, quantize_rows
from leyden.ops.int8_linear.reference import int8_linear_reference

__all__ = ["Int8Matrices", "int8_linear", "quantize_rows"]


def int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """``y[n, f] = scale[f] * sum_d x[n, d] weight[f, d]``; for inference, without gradients.

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
        ValueError: shapes or dtypes that do not fit together, x wants a gradient, or a backend that cannot run.
    """
    _check(x, weight, scale)
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
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("int8_linear has no gradient: weights in 8 bits are for inference; train in bfloat16.")
