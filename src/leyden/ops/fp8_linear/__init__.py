"""A linear map whose three products, forward and backward, are of 8-bit floats in tiles with scales (DeepSeek-V3)."""

from typing import Any

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating
from leyden.ops.fp8_linear.portable import Fp8Linear
from leyden.ops.fp8_linear.reference import fp8_linear_backward_reference, fp8_linear_reference

__all__ = ["fp8_linear"]


def fp8_linear(x: torch.Tensor, weight: torch.Tensor, backend: str = "auto") -> torch.Tensor:
    """``x weight^T`` as DeepSeek-V3 trains (arXiv 2412.19437, section 3.3): every operand is rounded to E4M3.

    Activations and gradients have a scale for each 128 numbers of a row, weights one for each block of 128 x 128; sums
    are float32 (float64 for float64). So are the gradients of both, whose sum over tokens has tiles of 128 tokens: rows
    of several calls are rounded call by call. Equations are in ``portable.py``.

    Args:
        x: [..., K], any floating dtype.
        weight: [N, K], dtype of x.
        backend: ``"auto"``, ``"reference"`` or ``"torch"``. The last emulates 8 bits exactly on every device, and on
            Hopper takes the tensor cores' product where that is found to give the same.

    Returns:
        [..., N] in the dtype of x.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"fp8_linear: x [..., K] and weight [N, K] expected; given {tuple(x.shape)} and {tuple(weight.shape)}."
        )
    check_floating("fp8_linear", x=x, weight=weight)
    body = _Reference if choose("fp8_linear", backend, x, weight) == "reference" else Fp8Linear
    return body.apply(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[0])


class _Reference(torch.autograd.Function):
    """The reference with its gradients, since those of a round are none that autograd knows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return fp8_linear_reference(x, weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dweight = fp8_linear_backward_reference(grads[0], x, weight)
        return dx.to(x.dtype), dweight.to(weight.dtype)
