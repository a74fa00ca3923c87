"""The experts as in ``portable.py``, with ``native.cpp`` between the matrix products.

The weight of an assignment multiplies the activation, not the expert's output: its gradient then falls out of the
activation's backward, and the outputs are summed as they are. Saved for the backward: the tokens, their sorted
projections, and where they came from.

On processors that multiply fast enough, ``forward.cpp`` does the whole forward in one pass, with a backward and
without: both have the same bits, on which reinforcement learning relies (``tests/serve/test_on_policy.py``). Where they
multiply pairs of bfloat16, ``backward.cpp`` does the backward likewise.
"""

import ctypes
from dataclasses import dataclass
from functools import cached_property
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
        bounds: [E + 1] int64, where each expert's rows begin, and the end.
        top_k: assignments a token.
    """

    row: torch.Tensor
    assignment: torch.Tensor
    bounds: torch.Tensor
    top_k: int

    @classmethod
    def of(cls, experts: torch.Tensor, kept: torch.Tensor | None, num_experts: int, grain: int) -> "_Sorted":
        """With as many rows for each expert as a multiple of ``grain``."""
        bounds, row, assignment = _sort(experts, kept, num_experts, grain)
        return cls(row, assignment, bounds, experts.shape[1])

    @cached_property
    def spans(self) -> list[tuple[int, slice]]:
        """(expert, its rows) for every expert that has any."""
        ends = self.bounds.tolist()
        return [(e, slice(a, b)) for e, (a, b) in enumerate(zip(ends, ends[1:], strict=False)) if b > a]

    @property
    def idle(self) -> list[int]:
        """The experts that have no row."""
        return sorted({*range(len(self.bounds) - 1)} - {expert for expert, _ in self.spans})

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


def _backward_pays(dtype: torch.dtype, *widths: int) -> bool:
    """Whether :func:`_backward` takes what :func:`_forward` kept, and is the faster way on this processor."""
    pays = library().leyden_matmul_pays(ctypes.c_int64(dtype == torch.bfloat16))
    return bool(pays) and _forward_pays(dtype, *widths)


def _forward(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    sort: _Sorted,
    weights: torch.Tensor,
    projected: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`; sums are float32 up to the last. ``projected`` is written to."""
    num_experts, dim, width = down.shape
    num_rows, stride = len(sort.assignment), dim + LANES
    y, out = x.new_empty(num_rows, stride, dtype=torch.float32), torch.empty_like(x)
    if isinstance(gate_up, Int8Matrices) and isinstance(down, Int8Matrices):
        scales = [stack.scale.float().contiguous() for stack in (gate_up, down)]
        stacks = (None, None, gate_up.weight.contiguous(), scales[0], down.weight.contiguous(), scales[1])
    else:
        assert isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor)
        stacks = (gate_up.contiguous(), down.contiguous(), None, None, None, None)
    places = (sort.assignment, sort.row, sort.bounds, weights)
    sizes = (num_experts, num_experts + 1, sort.top_k, len(x), num_rows, dim, width, stride)
    call("leyden_experts_forward", x.dtype, x, *stacks, *places, *sizes, y, projected, out)
    return out


_PANEL = 64
_ROOM = 2048
"""Rows whose gradients between the two products exist at once, unless one expert has more."""


def _backward(
    x: torch.Tensor,
    dy: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    sort: _Sorted,
    weights: torch.Tensor,
    projected: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, torch.Tensor]:
    """The gradients of x, gate_up, down and weights, in the places of the forward's arguments."""
    num_experts, dim, width = down.shape
    num_rows, room = len(sort.assignment), max(sort.longest, min(_ROOM, len(sort.assignment)))
    packed = 2 * width * _padded(dim) + dim * _padded(width)
    sizes = (num_experts, num_experts + 1, sort.top_k, len(x), num_rows, dim, width, room, packed)
    working = [x.new_empty(shape) for shape in ((num_experts, packed), (room, width), (room, 2 * width))]
    drows, dgate_up, ddown = x.new_empty(num_rows, dim), x.new_empty(gate_up.shape), x.new_empty(down.shape)
    dweights = torch.zeros_like(weights)  # an assignment that was dropped has none
    call(
        "leyden_experts_backward", x.dtype, x, dy, gate_up.contiguous(), down.contiguous(), projected, sort.assignment,
        sort.bounds, weights, *sizes, *working, drows, dgate_up, ddown, dweights,
    )  # fmt: skip
    return sort.sum_by_token(drows), dgate_up, ddown, None, dweights


def _padded(columns: int) -> int:
    """The columns of a matrix packed in panels (``matmul.h``)."""
    return -(-columns // _PANEL) * _PANEL


def _by_products(
    x: torch.Tensor,
    gate_up: torch.Tensor | Int8Matrices,
    down: torch.Tensor | Int8Matrices,
    sort: _Sorted,
    weights: torch.Tensor,
    projected: torch.Tensor | None,
) -> torch.Tensor:
    """As :func:`_forward`, by the matrix library's products, an expert at a time."""
    rows, width = sort.gather(x), down.shape[2]
    y, hidden = torch.empty_like(rows), x.new_empty(sort.longest, width)
    passing = x.new_empty(sort.longest if projected is None else 0, 2 * width)  # one buffer, which stays in the cache
    for expert, span in sort.spans:
        count = span.stop - span.start
        both = passing[:count] if projected is None else projected[span]
        active = hidden[:count]
        torch.mm(rows[span], gate_up[expert].t(), out=both)
        sizes = (width, count, weights.numel())
        call("leyden_experts_activate", x.dtype, both, sort.assignment[span], weights, *sizes, active)
        torch.mm(active, down[expert].t(), out=y[span])
    return sort.sum_by_token(y)


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
        x, weights = x.contiguous(), weights.contiguous()
        num_experts, dim, width = down.shape
        in_one_pass = type(gate_up) is type(down) and _forward_pays(x.dtype, dim, width)
        # A matrix library prepares a kernel for each number of rows; the single pass does not, and fills nothing up.
        filled = not in_one_pass or (keep and not _backward_pays(x.dtype, dim, width))
        grain = alignment(experts.numel(), num_experts) if filled else 1
        sort = _Sorted.of(experts, kept, num_experts, grain)
        projected = x.new_empty(len(sort.assignment), 2 * width) if keep else None
        if keep:
            ctx.save_for_backward(x, gate_up, down, weights, projected)
            ctx.sort = sort
        if in_one_pass:
            return _forward(x, gate_up, down, sort, weights, projected)
        return _by_products(x, gate_up, down, sort, weights, projected)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate_up, down, weights, projected = ctx.saved_tensors
        sort: _Sorted = ctx.sort
        width = down.shape[2]
        if _backward_pays(x.dtype, *down.shape[1:]):
            return *_backward(x, grads[0].contiguous(), gate_up, down, sort, weights, projected), None, None
        rows, dy = sort.gather(x), sort.gather(grads[0].contiguous())
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
