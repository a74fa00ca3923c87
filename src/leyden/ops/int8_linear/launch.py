"""What is launched for products with weights in 8 bits in Triton."""

from typing import Any

import torch

from leyden.ops.int8_linear import kernels as jitted
from leyden.ops.launching import blocks, last_dim_contiguous, products

kernels: Any = jitted  # launching is beyond types

_FEW = 16
_ROWS = 64
"""Rows of a tile: as many as few sequences decode, or as a prompt has. Both sum in the same order."""


@torch.library.custom_op("leyden::int8_linear", mutates_args=())
def _int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[N, D] to [N, F]; without a gradient: it is for inference."""
    (N, D), F = x.shape, len(weight)
    out = x.new_empty(N, F)
    if N and F:
        product, precision = products(x.dtype)
        rows = _FEW if N <= _FEW else _ROWS
        kernels.multiply[(blocks(F, 64), blocks(N, rows))](
            x, weight, scale, out, N, F, x.stride(0),
            D=D, BM=rows, BN=64, BK=64, PRODUCT=product, PRECISION=precision, num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


@_int8_linear.register_fake
def _(x, weight, scale):
    return x.new_empty(x.shape[0], weight.shape[0])


def int8_linear_triton(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """See :func:`leyden.ops.int8_linear`; x is [N, D]."""
    return _int8_linear(last_dim_contiguous(x), weight.contiguous(), scale.contiguous())
