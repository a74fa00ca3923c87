"""What is launched for products with weights in 8 bits in Triton."""

import torch

from leyden.ops.int8_linear import kernels as jitted
from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, products

kernels = Kernels(jitted)

_TILE = 64
"""Rows and columns of a program, however few rows there are: reading the weight takes the time then, and other tiles
would be other instructions, with other roundings."""


@torch.library.custom_op("leyden::int8_linear", mutates_args=())
def _int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[N, D] to [N, F]; without a gradient: it is for inference."""
    (N, D), F = x.shape, len(weight)
    out = x.new_empty(N, F)
    if N and F:
        product, precision = products(x.dtype)
        dims = 64 if x.dtype == torch.bfloat16 else 16  # products in float32 take four times the registers
        kernels.multiply[(blocks(F, _TILE), blocks(N, _TILE))](
            x, weight, scale, out, N, F, x.stride(0),
            D=D, BM=_TILE, BN=_TILE, BK=dims, PRODUCT=product, PRECISION=precision, num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


@_int8_linear.register_fake
def _(x, weight, scale):
    return x.new_empty(x.shape[0], weight.shape[0])


def int8_linear_triton(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """See :func:`leyden.ops.int8_linear`; x is [N, D]."""
    return _int8_linear(last_dim_contiguous(x), weight.contiguous(), scale.contiguous())
