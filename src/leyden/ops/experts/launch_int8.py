"""The experts with matrices in 8 bits: rows sorted on the device, grouped products that widen integers in registers.

Two products, the activation within the first, and the sum by token: a fixed number of launches, whichever experts are
chosen, and nothing read back. A row's bits depend on the rows beside it only through which tile there is.
"""

from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.experts import kernels as jitted
from leyden.ops.experts.launch import unpermute
from leyden.ops.experts.sort import sort_by_expert
from leyden.ops.int8_linear import Int8Matrices
from leyden.ops.launching import Kernels, blocks, power_of_two, products

kernels = Kernels(jitted)


@dataclass(frozen=True)
class Tile:
    """Rows, columns and inner dims of a program, its warps, and the stages of its loop."""

    rows: int
    columns: int
    dims: int
    warps: int
    stages: int

    @classmethod
    def of(cls, dtype: torch.dtype, rows_of_expert: int) -> "Tile":
        """By how many rows an expert has on average: few only carry the weights past the products."""
        if dtype != torch.bfloat16:  # products in float32 take four times the registers
            return cls(16, 32, 32, 4, 3)
        return _FEW if rows_of_expert <= 16 else _SOME if rows_of_expert <= 64 else _MANY

    def constants(self, dtype: torch.dtype) -> dict[str, Any]:
        product, precision = products(dtype)
        return {
            "BM": self.rows, "BN": self.columns, "BK": self.dims, "PRODUCT": product, "PRECISION": precision,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


_FEW = Tile(16, 32, 128, 4, 5)
_SOME = Tile(32, 32, 128, 4, 4)
_MANY = Tile(128, 64, 64, 8, 3)

_TOGETHER = 4
"""Blocks of rows that run side by side."""


@torch.library.custom_op("leyden::swiglu_experts_int8", mutates_args=())
def _forward(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down: torch.Tensor,
    down_scale: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """Without a gradient: it is for inference."""
    (E, D, F), top_k = down.shape, experts.shape[1]
    order, row_of, ends = sort_by_expert(experts, kept, E)
    tile = Tile.of(x.dtype, blocks(len(order), E))
    # Of M rows: M / rows blocks, and one more at most where an expert's rows are no multiple; none is without a row.
    groups = blocks(min(len(order), blocks(len(order), tile.rows) + E), _TOGETHER)
    shapes = {"E": E, "BE": power_of_two(E), "D": D, "F": F, "TOGETHER": _TOGETHER, **tile.constants(x.dtype)}
    hidden, rows = x.new_empty(len(order), F), x.new_empty(len(order), D)
    kernels.project_int8[(blocks(F, tile.columns) * _TOGETHER, groups)](
        x, gate_up, gate_up_scale, order, weights, ends, hidden, top_k, **shapes
    )
    kernels.collect_int8[(blocks(D, tile.columns) * _TOGETHER, groups)](hidden, down, down_scale, ends, rows, **shapes)
    return unpermute(rows, row_of, ends, len(x))


@_forward.register_fake
def _(x, gate_up, gate_up_scale, down, down_scale, experts, weights, kept):
    return x.new_empty(x.shape)


def swiglu_experts_int8_triton(
    x: torch.Tensor,
    gate_up: Int8Matrices,
    down: Int8Matrices,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`."""
    stacks = (y for stack in (gate_up, down) for y in (stack.weight.contiguous(), stack.scale.float().contiguous()))
    return _forward(x.contiguous(), *stacks, experts, weights.float().contiguous(), kept)
