"""Tokens sorted by expert, one matrix product an expert and projection, and a backward of its own.

Saved for the backward: the tokens, the sorting and the gate and up projections; the activation and the experts'
outputs are formed again, which costs one pass over memory and no matrix product beyond the usual.
"""

from typing import Any

import torch
from torch.nn.functional import silu


def swiglu_experts_portable(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`."""
    flat = experts.flatten()
    if kept is not None:  # dropped assignments sort behind the last expert
        flat = flat.masked_fill(~kept.flatten(), gate_up.shape[0])
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=gate_up.shape[0])[: gate_up.shape[0]].tolist()
    return _Experts.apply(x, gate_up, down, weights, order[: sum(counts)], counts)


def _spans(counts: list[int]) -> list[tuple[int, slice]]:
    """(expert, its rows) for every expert that has any."""
    spans, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            spans.append((expert, slice(start, start + count)))
        start += count
    return spans


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        weights: torch.Tensor,
        order: torch.Tensor,
        counts: list[int],
    ) -> torch.Tensor:
        """``order`` [M]: assignments (n * k + j) sorted by expert; ``counts``: how many each expert has."""
        token = order // weights.shape[1]
        rows = x.index_select(0, token)
        projected = x.new_empty(rows.shape[0], gate_up.shape[1])
        y = torch.empty_like(rows)
        for expert, span in _spans(counts):
            torch.mm(rows[span], gate_up[expert].t(), out=projected[span])
            gate, up = projected[span].chunk(2, dim=-1)
            torch.mm(silu(gate).mul_(up), down[expert].t(), out=y[span])
        ctx.save_for_backward(x, gate_up, down, weights, order, projected, y)
        ctx.counts = counts
        return _sum_by_token(y * _share(weights, order, y.dtype), token, x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate_up, down, weights, order, projected, y = ctx.saved_tensors
        token = order // weights.shape[1]
        rows, dout = x.index_select(0, token), grads[0].index_select(0, token)
        dshare = (y * dout).sum(-1, dtype=weights.dtype)
        dy = dout.mul_(_share(weights, order, dout.dtype))
        dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
        drows, dprojected = torch.empty_like(rows), torch.empty_like(projected)
        for expert, span in _spans(ctx.counts):
            gate, up = projected[span].chunk(2, dim=-1)
            dgate, dup = dprojected[span].chunk(2, dim=-1)
            active = silu(gate)
            dhidden = torch.mm(dy[span], down[expert])
            torch.mul(dhidden, active, out=dup)
            torch.mm(dy[span].t(), active.mul_(up), out=ddown[expert])
            dgate.copy_(torch.ops.aten.silu_backward(dhidden.mul_(up), gate))
            torch.mm(dprojected[span].t(), rows[span], out=dgate_up[expert])
            torch.mm(dprojected[span], gate_up[expert], out=drows[span])
        dweights = torch.zeros_like(weights).flatten().index_copy_(0, order, dshare).view_as(weights)
        return _sum_by_token(drows, token, x), dgate_up, ddown, dweights, None, None


def _share(weights: torch.Tensor, order: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight of each assignment, [M, 1]."""
    return weights.flatten().index_select(0, order).to(dtype)[:, None]


def _sum_by_token(rows: torch.Tensor, token: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Add each assignment's row [M, D] to its token's, summed in float32 (float64 for float64)."""
    total = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    return total.index_add_(0, token, rows.to(total.dtype)).to(like.dtype)
