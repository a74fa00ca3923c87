"""Tokens sorted by expert, one matrix product an expert and projection, and a backward of its own.

Saved for the backward: the tokens, the sorting, the gate and up projections and the experts' outputs; the activation
is formed again, which costs one pass over memory and no matrix product beyond the usual.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import silu

from leyden.ops.experts.sort import sort_by_expert
from leyden.ops.gradients import backward_may_follow
from leyden.ops.int8_linear import Int8Matrices

_ALIGNMENT = 64
_LEAST_ALIGNMENT = 16


def alignment(num_assignments: int, num_experts: int) -> int:
    """What an expert's rows are filled up to a multiple of.

    A matrix library prepares a kernel for every new number of rows (0.6 ms on a CPU, which is more than the product
    takes), so that few numbers should occur; and it takes a way of its own, with other roundings, for very few rows,
    so that a token's result would depend on how many others chose its expert.
    """
    return _ALIGNMENT if num_assignments >= 4 * _ALIGNMENT * num_experts else _LEAST_ALIGNMENT


def swiglu_experts_portable(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`."""
    keep = backward_may_follow(x, gate_up, down, weights)
    return _Experts.apply(x, gate_up, down, weights, sort_rows(experts, kept, gate_up.shape[0]), keep)


@dataclass(frozen=True)
class SortedRows:
    """The M assignments of tokens to experts, in rows sorted by expert.

    Each expert's rows are filled up to a multiple of :func:`alignment` with zeros.

    Attributes:
        order: [M] int64, the assignments (n * k + j) sorted by expert.
        row: [M] int64, the row of each.
        token: [rows] int64, the token of each row; 0 where it only fills up.
        filling: [rows - M] int64, the rows that only fill up.
        spans: (expert, its rows) for every expert that has any.
    """

    order: torch.Tensor
    row: torch.Tensor
    token: torch.Tensor
    filling: torch.Tensor
    spans: list[tuple[int, slice]]

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[N, D] to [rows, D]."""
        return x.index_select(0, self.token).index_fill_(0, self.filling, 0)


def sort_rows(experts: torch.Tensor, kept: torch.Tensor | None, num_experts: int) -> SortedRows:
    """Experts [N, k] int64 of the kept assignments [N, k] bool, or of all, sorted by expert."""
    top_k = experts.shape[1]
    order, _, ends = sort_by_expert(experts, kept, num_experts)
    bounds = [0, *ends.tolist()]
    order = order[: bounds[-1]]
    grain = alignment(len(order), num_experts)
    spans, shifts, start = [], [], 0
    for expert, (first, stop) in enumerate(itertools.pairwise(bounds)):
        shifts.append(start - first)
        if stop > first:
            end = start + -(-(stop - first) // grain) * grain
            spans.append((expert, slice(start, end)))
            start = end
    counts = ends.diff(prepend=ends.new_zeros(1))
    row = torch.arange(len(order), device=order.device)
    row += torch.tensor(shifts, device=order.device).repeat_interleave(counts, output_size=len(order))
    token = order.new_zeros(start).index_copy_(0, row, order // top_k)
    filling = torch.ones_like(token, dtype=torch.bool).index_fill_(0, row, False).nonzero().squeeze(1)
    return SortedRows(order, row, token, filling, spans)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up: torch.Tensor | Int8Matrices,
        down: torch.Tensor | Int8Matrices,
        weights: torch.Tensor,
        sort: SortedRows,
        keep: bool,
    ) -> torch.Tensor:
        rows = sort.gather(x)
        projected = x.new_empty(rows.shape[0], gate_up.shape[1])
        y = torch.empty_like(rows)
        for expert, span in sort.spans:
            torch.mm(rows[span], gate_up[expert].t(), out=projected[span])
            gate, up = projected[span].chunk(2, dim=-1)
            torch.mm(silu(gate).mul_(up), down[expert].t(), out=y[span])
        if keep:
            ctx.save_for_backward(x, gate_up, down, weights, projected, y)
            ctx.sort = sort
        return sum_by_token(y * share_of_rows(weights, sort, y.dtype), sort, x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate_up, down, weights, projected, y = ctx.saved_tensors
        sort: SortedRows = ctx.sort
        rows, dout = sort.gather(x), sort.gather(grads[0])
        dshare = (y * dout).sum(-1, dtype=weights.dtype)
        dweights = torch.zeros_like(weights).flatten().index_copy_(0, sort.order, dshare[sort.row])
        dy = dout.mul_(share_of_rows(weights, sort, dout.dtype))
        dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
        drows, dprojected = torch.empty_like(rows), torch.empty_like(projected)
        for expert, span in sort.spans:
            gate, up = projected[span].chunk(2, dim=-1)
            dgate, dup = dprojected[span].chunk(2, dim=-1)
            active = silu(gate)
            dhidden = torch.mm(dy[span], down[expert])
            torch.mul(dhidden, active, out=dup)
            torch.mm(dy[span].t(), active.mul_(up), out=ddown[expert])
            dgate.copy_(torch.ops.aten.silu_backward(dhidden.mul_(up), gate))
            torch.mm(dprojected[span].t(), rows[span], out=dgate_up[expert])
            torch.mm(dprojected[span], gate_up[expert], out=drows[span])
        return sum_by_token(drows, sort, x), dgate_up, ddown, dweights.view_as(weights), None, None


def share_of_rows(weights: torch.Tensor, sort: SortedRows, dtype: torch.dtype) -> torch.Tensor:
    """The weight of each row [rows, 1]; zero for those that fill up."""
    share = weights.new_zeros(len(sort.token)).index_copy_(0, sort.row, weights.flatten().index_select(0, sort.order))
    return share.to(dtype)[:, None]


def sum_by_token(rows: torch.Tensor, sort: SortedRows, like: torch.Tensor) -> torch.Tensor:
    """Add each row to its token's, summed in float32 (float64 for float64)."""
    total = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    return total.index_add_(0, sort.token, rows.to(total.dtype)).to(like.dtype)
