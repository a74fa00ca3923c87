"""A linear map in 8-bit tiles as an autograd function: what each of its three products multiplies, and what it keeps.

With Q_r for tiles of 1 x 128 along rows, Q_c for tiles of 128 x 1 down columns and Q_b for blocks of 128 x 128:

    y  = Q_r(x) Q_b(W)^T
    dx = Q_r(dy) Q_b(W)
    dW = Q_c(dy)^T Q_c(Q_r(x))

Tiles lie along the direction in which a product sums, so that a scale is outside of the sum. A block is as wide as it
is high, so that one rounding of W serves both. Of x what is kept for the backward is Q_r(x), a byte a number, which is
widened and rounded again down the columns, as DeepSeek-V3 does (arXiv 2412.19437, section 3.5.1).
"""

from typing import Any

import torch

from leyden.ops.fp8_linear.products import product
from leyden.ops.fp8_linear.quantization import TILE, Tiled, quantize_tiles


class Fp8Linear(torch.autograd.Function):
    """x [T, K] and weight [N, K] to [T, N] in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = quantize_tiles(x, 1, TILE)
        ctx.save_for_backward(rows.values, rows.scales, weight)  # the weight itself, whose memory FSDP frees
        ctx.dtype = x.dtype
        return product(rows, quantize_tiles(weight, TILE, TILE), x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, scales, weight = ctx.saved_tensors
        dy, dx, dweight = grads[0], None, None
        if ctx.needs_input_grad[0]:
            blocks = quantize_tiles(weight, TILE, TILE)
            dx = product(quantize_tiles(dy, 1, TILE), turned(blocks), ctx.dtype)
        if ctx.needs_input_grad[1]:
            x = Tiled(values, scales, 1, TILE).wide()
            dweight = product(down_columns(dy), down_columns(x), weight.dtype)
        return dx, dweight


def turned(tiles: Tiled) -> Tiled:
    """The transposed matrix, of transposed tiles."""
    return Tiled(tiles.values.t(), tiles.scales.t(), tiles.columns, tiles.rows)


def down_columns(x: torch.Tensor) -> Tiled:
    """``x`` [T, C] in tiles of 128 rows, transposed: [C, T] in tiles along its rows."""
    return turned(quantize_tiles(x, TILE, 1))
