"""The experts as in ``portable.py``, with ``native.cpp`` between the matrix products.

The weight of an assignment multiplies the activation, not the expert's output: its gradient then falls out of the
activation's backward, and the outputs are summed as they are. Saved for the backward: the sorted tokens, their
projections, and where they came from. Where no backward follows, ``forward.cpp`` does all of it in one pass.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.experts.portable import alignment
from leyden.ops.int8_linear import Int8Matrices
from leyden.ops.native import LANES, call, library


def _sort(
    experts: torch.Tensor, kept: torch.Tensor | None, num_experts: int, grain: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each expert's rows begin [E + 1] int64; each assignment's row, each row's assignment (``native.cpp``)."""
    count = experts.numel()
    capacity = count + num_experts * (grain - 1)
    row = experts.new_empty(count, dtype=torch.int32)
    assignment = experts.new_empty(capacity, dtype=torch.int32)
    bounds = experts.new_empty(num_experts + 1)
    kept = None if kept is None else kept.contiguous()
    sizes = (count, num_experts, grain, capacity)
    call("leyden_experts_sort", experts.contiguous(), kept, *sizes, row, assignment, bounds, num_experts + 1)
    return bounds, row, assignment[: int(bounds[-1])]


@dataclass(frozen=True)
class _Sorted:
    """The M assignments of tokens to experts, in rows sorted by expert; see ``native.cpp``.

    Attributes:
        row: [M] int32, the row of each assignment, -1 where dropped.
        assignment: [rows] int32, the assignment of each row, -1 where the row only fills up.
        spans: (expert, its rows) for every expert that has any.
        idle: the experts that have none.
        top_k: assignments a token.
    """

    row: torch.Tensor
    assignment: torch.Tensor
    spans: list[tuple[int, slice]]
    idle: list[int]
    top_k: int

    @classmethod
    def of(cls, experts: torch.Tensor, kept: torch.Tensor | None, num_experts: int) -> "_Sorted":
        bounds, row, assignment = _sort(experts, kept, num_experts, alignment(experts.numel(), num_experts))
        ends = bounds.tolist()
        spans = {e: slice(a, b) for e, (a, b) in enumerate(zip(ends, ends[1:], strict=False)) if b > a}
        idle = [e for e in range(num_experts) if e not in spans]
        return cls(row, assignment, list(spans.items()), idle, experts.shape[1])

    @property
    def longest(self) -> int:
        """The rows of the expert that has most."""
        return max((span.stop - span.start for _, span in self.spans), default=0)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[N, D] to [rows, D]."""
        rows = x.new_empty(len(self.assignment), x.shape[1])
        sizes = (self.top_k, x.shape[1], len(x), len(rows))
        call("leyden_experts_gather", x.dtype, x, self.assignment, *sizes, rows)
        return rows

    def sum_by_token(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows, D] to [N, D]."""
        out = rows.new_empty(len(self.row) // self.top_k, rows.shape[1])
        sizes = (self.top_k, rows.shape[1], len(rows), len(out))
        call("leyden_experts_sum", rows.dtype, rows, self.row, *sizes, out)
        return out


def _forward_pays(dtype: torch.dtype, *widths: int) -> bool:
    """Whether :func:`_forward` takes this, and is the faster way on this processor."""
    pays = library().leyden_experts_forward_pays(ctypes.c_int64(dtype == torch.bfloat16))
    return bool(pays) and not any(width % LANES for width in widths)


def _forward(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`; sums are float32 up to the last."""
    (num_experts, dim, width), top_k = down.shape, experts.shape[1]
    spans, row, assignment = _sort(experts, kept, num_experts, 1)
    x = x.contiguous()
    stride = dim + LANES
    y, out = x.new_empty(len(assignment), stride, dtype=torch.float32), torch.empty_like(x)
    if isinstance(gate_up, Int8Matrices) and isinstance(down, Int8Matrices):
        scales = [stack.scale.float().contiguous() for stack in (gate_up, down)]
        stacks = (None, None, gate_up.weight.contiguous(), scales[0], down.weight.contiguous(), scales[1])
    else:
        assert isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor)
        stacks = (gate_up.contiguous(), down.contiguous(), None, None, None, None)
    places = (assignment.div(top_k, rounding_mode="floor"), row, spans, weights.contiguous())
    sizes = (num_experts, num_experts + 1, top_k, len(x), len(assignment), dim, width, stride)
    call("leyden_experts_forward", x.dtype, x, *stacks, *places, *sizes, y, out)
    return out


class NativeExperts(torch.autograd.Function):
    """See :func:`leyden.ops.swiglu_experts`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up: torch.Tensor | Int8Matrices,
        down: torch.Tensor | Int8Matrices,
        experts: torch.Tensor,
        weights: torch.Tensor,
        kept: torch.Tensor | None,
        keep: bool,
    ) -> torch.Tensor:
        sort = _Sorted.of(experts, kept, gate_up.shape[0])
        width = down.shape[2]
        if not keep and type(gate_up) is type(down) and _forward_pays(x.dtype, x.shape[1], width):
            return _forward(x, gate_up, down, experts, weights, kept)
        weights = weights.contiguous()
        rows = sort.gather(x.contiguous())
        # The projections are kept for the backward, or else lie in one buffer that stays in the cache.
        projected = x.new_empty(len(rows) if keep else sort.longest, 2 * width)
        y, hidden = torch.empty_like(rows), x.new_empty(sort.longest, width)
        for expert, span in sort.spans:
            count = span.stop - span.start
            both, active = projected[span] if keep else projected[:count], hidden[:count]
            torch.mm(rows[span], gate_up[expert].t(), out=both)
            sizes = (width, count, weights.numel())
            call("leyden_experts_activate", x.dtype, both, sort.assignment[span], weights, *sizes, active)
            torch.mm(active, down[expert].t(), out=y[span])
        if keep:
            ctx.save_for_backward(rows, gate_up, down, weights, projected)
            ctx.sort = sort
        return sort.sum_by_token(y)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, gate_up, down, weights, projected = ctx.saved_tensors
        sort: _Sorted = ctx.sort
        width = down.shape[2]
        dy = sort.gather(grads[0].contiguous())
        dgate_up, ddown, dweights = torch.empty_like(gate_up), torch.empty_like(down), torch.zeros_like(weights)
        dgate_up[sort.idle], ddown[sort.idle] = 0, 0
        hidden, dprojected = rows.new_empty(sort.longest, width), rows.new_empty(sort.longest, 2 * width)
        for expert, span in sort.spans:
            count = span.stop - span.start
            active, dboth = hidden[:count], dprojected[:count]
            torch.mm(dy[span], down[expert], out=active)  # its gradient first
            given = (projected[span], sort.assignment[span], weights, width, count, weights.numel())
            call("leyden_experts_activate_backward", rows.dtype, *given, active, dboth, dweights)
            torch.mm(dy[span].t(), active, out=ddown[expert])
            torch.mm(dboth.t(), rows[span], out=dgate_up[expert])
            torch.mm(dboth, gate_up[expert], out=dy[span])  # from here on the gradient of the rows
        return sort.sum_by_token(dy), dgate_up, ddown, None, dweights, None, None
