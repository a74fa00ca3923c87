"""What is launched for products with weights in 8 bits in Triton."""

import torch

from leyden.ops.int8_linear import kernels as jitted
from leyden.ops.int8_linear.quantization import widen
from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, products

kernels = Kernels(jitted)

_MOST = 256
"""Rows from which on the weight is widened once for the matrix library: by then products take the time, not reading."""


def _tile(num_rows: int, dtype: torch.dtype) -> dict[str, int]:
    """The tile of a program, by how many rows there are.

    Up to 64 rows the weight's way from memory takes the time: narrow tiles make many programs, each with several blocks
    of the weight under way. They are multiplied by one and the same instruction, whose sums run in the same order.
    """
    if dtype != torch.bfloat16:  # products in float32 take four times the registers
        return {"BM": 16 if num_rows <= 16 else 32, "BN": 32, "BK": 32, "num_warps": 4, "num_stages": 4}
    if num_rows <= 16:
        return {"BM": 16, "BN": 16, "BK": 256, "num_warps": 2, "num_stages": 5}
    if num_rows <= 64:
        return {"BM": 32, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 5}
    return {"BM": 64, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 4}


@torch.library.custom_op("leyden::int8_linear", mutates_args=())
def _int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[N, D] to [N, F]; without a gradient: it is for inference."""
    (N, D), F = x.shape, len(weight)
    if N >= _MOST:
        return torch.mm(x, widen(weight, scale, x.new_empty(weight.shape), "torch").t())
    out = x.new_empty(N, F)
    if N and F:
        (product, precision), tile = products(x.dtype), _tile(N, x.dtype)
        kernels.multiply[(blocks(N, tile["BM"]), blocks(F, tile["BN"]))](
            x, weight, scale, out, N, F, x.stride(0), D=D, PRODUCT=product, PRECISION=precision, **tile,
        )  # fmt: skip
    return out


@_int8_linear.register_fake
def _(x, weight, scale):
    return x.new_empty(x.shape[0], weight.shape[0])


def int8_linear_triton(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """See :func:`leyden.ops.int8_linear`; x is [N, D]."""
    return _int8_linear(last_dim_contiguous(x), weight.contiguous(), scale.contiguous())
