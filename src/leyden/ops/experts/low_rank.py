"""Experts whose weights stay as they are, with low-rank additions that are trained (arXiv 2106.09685).

Each expert computes with ``W + B A``, and the sum is never formed: tokens, sorted by expert, go through W and through A
and B. So weights in 8 bits do as well, and the backward costs no product of the size of W but those for the tokens.
"""

from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu

from leyden.ops.experts.portable import SortedRows, share_of_rows, sort_rows, sum_by_token
from leyden.ops.experts.reference import swiglu_experts_reference
from leyden.ops.gradients import backward_may_follow
from leyden.ops.int8_linear import Int8Matrices


class LowRankExperts(NamedTuple):
    """The additions to both projections of E experts, in the dtype of the tokens.

    Attributes:
        gate_up_a: [E, r, D].
        gate_up_b: [E, 2F, r].
        down_a: [E, r, F].
        down_b: [E, D, r].
    """

    gate_up_a: torch.Tensor
    gate_up_b: torch.Tensor
    down_a: torch.Tensor
    down_b: torch.Tensor


def swiglu_experts_low_rank(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    additions: LowRankExperts,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """:func:`leyden.ops.swiglu_experts` with ``gate_up + gate_up_b gate_up_a`` and ``down + down_b down_a``.

    Args:
        x: [N, D].
        gate_up, down: [E, 2F, D] and [E, D, F], in the dtype of x or in 8 bits; they get no gradient.
        additions: to these.
        experts, weights, kept: [N, k] each.
        backend: ``"auto"``, ``"torch"`` or ``"reference"``.

    Returns:
        [N, D] in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, or another backend.
    """
    E, D, F = down.shape
    r = additions.gate_up_a.shape[1]
    wanted = ((E, r, D), (E, 2 * F, r), (E, r, F), (E, D, r))
    if tuple(map(tuple, (part.shape for part in additions))) != wanted or backend not in ("auto", "torch", "reference"):
        given = ", ".join(str(tuple(part.shape)) for part in additions)
        raise ValueError(
            f"swiglu_experts_low_rank: additions {wanted} expected, and backend 'auto', 'torch' or 'reference'; given "
            f"{given} and {backend!r}."
        )
    if backend == "reference":
        gate_up = _sum(gate_up, additions.gate_up_a, additions.gate_up_b)
        down = _sum(down, additions.down_a, additions.down_b)
        return swiglu_experts_reference(x, gate_up, down, experts, weights, kept)
    keep = backward_may_follow(x, weights, *additions)
    rows = sort_rows(experts.long(), kept, E)
    return _LowRankExperts.apply(x, weights, *additions, gate_up, down, rows, keep)


def _sum(plain: torch.Tensor | Int8Matrices, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    return (plain.to_float() if isinstance(plain, Int8Matrices) else plain).to(wide) + b.to(wide) @ a.to(wide)


class _LowRankExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weights: torch.Tensor,
        gate_up_a: torch.Tensor,
        gate_up_b: torch.Tensor,
        down_a: torch.Tensor,
        down_b: torch.Tensor,
        gate_up: torch.Tensor | Int8Matrices,
        down: torch.Tensor | Int8Matrices,
        sort: SortedRows,
        keep: bool,
    ) -> torch.Tensor:
        rows, rank = sort.gather(x), gate_up_a.shape[1]
        projected, y = x.new_empty(len(rows), gate_up.shape[1]), torch.empty_like(rows)
        inner, inner_down = x.new_empty(2, len(rows), rank).unbind()
        for expert, span in sort.spans:
            torch.mm(rows[span], gate_up[expert].t(), out=projected[span])
            torch.mm(rows[span], gate_up_a[expert].t(), out=inner[span])
            projected[span].addmm_(inner[span], gate_up_b[expert].t())
            gate, up = projected[span].chunk(2, dim=-1)
            hidden = silu(gate).mul_(up)
            torch.mm(hidden, down[expert].t(), out=y[span])
            torch.mm(hidden, down_a[expert].t(), out=inner_down[span])
            y[span].addmm_(inner_down[span], down_b[expert].t())
        if keep:
            additions = (gate_up_a, gate_up_b, down_a, down_b)
            ctx.save_for_backward(x, weights, *additions, projected, y, inner, inner_down)
            ctx.sort, ctx.frozen = sort, (gate_up, down)
        return sum_by_token(y * share_of_rows(weights, sort, y.dtype), sort, x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weights, *additions, projected, y, inner, inner_down = ctx.saved_tensors
        (gate_up, down), sort = ctx.frozen, ctx.sort
        gate_up_a, gate_up_b, down_a, down_b = additions
        dgate_up_a, dgate_up_b, ddown_a, ddown_b = map(torch.zeros_like, additions)
        rows, dout = sort.gather(x), sort.gather(grads[0])
        dshare = (y * dout).sum(-1, dtype=weights.dtype)
        dweights = torch.zeros_like(weights).flatten().index_copy_(0, sort.order, dshare[sort.row])
        dy = dout.mul_(share_of_rows(weights, sort, dout.dtype))
        drows = torch.empty_like(rows)
        for expert, span in sort.spans:
            gate, up = projected[span].chunk(2, dim=-1)
            active = silu(gate)
            dinner = torch.mm(dy[span], down_b[expert])
            torch.mm(dy[span].t(), inner_down[span], out=ddown_b[expert])
            dhidden = torch.mm(dy[span], down[expert]).addmm_(dinner, down_a[expert])
            torch.mm(dinner.t(), active * up, out=ddown_a[expert])
            dgate = torch.ops.aten.silu_backward(dhidden * up, gate)
            dprojected = torch.cat([dgate, dhidden.mul_(active)], dim=-1)
            dinner = torch.mm(dprojected, gate_up_b[expert])
            torch.mm(dprojected.t(), inner[span], out=dgate_up_b[expert])
            torch.mm(dinner.t(), rows[span], out=dgate_up_a[expert])
            torch.mm(dprojected, gate_up[expert], out=drows[span]).addmm_(dinner, gate_up_a[expert])
        dx = sum_by_token(drows, sort, x)
        return dx, dweights.view_as(weights), dgate_up_a, dgate_up_b, ddown_a, ddown_b, None, None, None, None
