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
        share = weights.flatten().index_select(0, order)
        ctx.save_for_backward(x, gate_up, down, weights, order, projected)
        ctx.counts = counts
        out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return out.index_add_(0, token, y * share[:, None]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate_up, down, weights, order, projected = ctx.saved_tensors
        token = order // weights.shape[1]
        share = weights.flatten().index_select(0, order)
        rows, dy = x.index_select(0, token), grads[0].index_select(0, token)
        dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
        drows, dshare = torch.empty_like(rows), torch.empty_like(share)
        for expert, span in _spans(ctx.counts):
            gate, up = (t.to(share.dtype) for t in projected[span].chunk(2, dim=-1))
            opened = torch.sigmoid(gate)
            active = gate * opened
            hidden = active * up
            # y = share * hidden down^T: the share commutes with the product, so it is applied to the narrow side.
            dhidden = torch.mm(dy[span], down[expert]).to(share.dtype)
            dshare[span] = (dhidden * hidden).sum(-1)
            torch.mm(dy[span].t(), (hidden * share[span, None]).to(x.dtype), out=ddown[expert])
            dhidden *= share[span, None]
            dprojected = torch.cat([dhidden * up * (opened + active * (1 - opened)), dhidden * active], dim=-1)
            dprojected = dprojected.to(x.dtype)
            torch.mm(dprojected.t(), rows[span], out=dgate_up[expert])
            torch.mm(dprojected, gate_up[expert], out=drows[span])
        dx = torch.zeros(x.shape, dtype=share.dtype, device=x.device).index_add_(0, token, drows.to(share.dtype))
        dweights = torch.zeros_like(weights).flatten().index_copy_(0, order, dshare).view_as(weights)
        return dx.to(x.dtype), dgate_up, ddown, dweights, None, None
