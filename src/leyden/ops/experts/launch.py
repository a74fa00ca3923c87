"""The experts with their rows sorted on the device, grouped products, and Triton kernels between them.

Rows are as many as assignments, and products and kernels read from device memory where experts end, so that the host
need not know (``grouped.py`` says where PyTorch's products ask it all the same). As in ``native.py``, the weight of an
assignment multiplies the activation. Saved for the backward: the tokens, their projections and the order of their
assignments; the rows are formed again.
"""

from typing import Any

import torch
from torch.nn.functional import grouped_mm

from leyden.ops.experts import kernels as jitted
from leyden.ops.experts.grouped import reason_against
from leyden.ops.experts.sort import sort_by_expert
from leyden.ops.launching import Kernels, blocks, power_of_two

kernels = Kernels(jitted)

_BLOCK = 1024
"""Dims that a program reads at once."""

_CLEARING = 32
"""Programs that clear the gradients of one expert without rows."""


def _permute(x: torch.Tensor, row_of: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """[N, D] to [N k, D], the rows of dropped assignments undefined."""
    N, D = x.shape
    rows = x.new_empty(len(row_of), D)
    block = min(_BLOCK, power_of_two(D))
    kernels.permute[(N, blocks(D, block))](x, row_of, ends, rows, E=len(ends), K=len(row_of) // N, D=D, BLOCK=block)
    return rows


def unpermute(rows: torch.Tensor, row_of: torch.Tensor, ends: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[N k, D] to [N, D]."""
    D = rows.shape[1]
    out = rows.new_empty(num_tokens, D)
    block, top_k = min(_BLOCK, power_of_two(D)), len(row_of) // num_tokens
    kernels.unpermute[(num_tokens, blocks(D, block))](
        rows, row_of, ends, out, E=len(ends), K=top_k, D=D, BLOCK=block
    )  # fmt: skip
    return out


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy where grouped_mm could not read it."""
    return x if x.is_contiguous() and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("leyden::swiglu_experts", mutates_args=())
def _forward(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, and for the backward the projections and what :func:`sort_by_expert` returns."""
    E, _, F = down.shape
    order, row_of, ends = sort_by_expert(experts, kept, E)
    rows = _permute(x.contiguous(), row_of, ends)
    projected = grouped_mm(rows, _aligned(gate_up).transpose(1, 2), offs=ends)
    hidden = x.new_empty(len(order), F)
    block = min(_BLOCK, power_of_two(F))
    kernels.activate[(len(order), blocks(F, block))](
        projected, weights.contiguous(), order, ends, hidden, E=E, F=F, BLOCK=block
    )  # fmt: skip
    y = grouped_mm(hidden, _aligned(down).transpose(1, 2), offs=ends)
    return unpermute(y, row_of, ends, len(x)), projected, order, row_of, ends


@_forward.register_fake
def _(x, gate_up, down, experts, weights, kept):
    count = experts.numel()
    order, row_of = (experts.new_empty(count) for _ in range(2))
    ends = experts.new_empty(len(down), dtype=torch.int32)
    return x.new_empty(x.shape), x.new_empty(count, gate_up.shape[1]), order, row_of, ends


@torch.library.custom_op("leyden::swiglu_experts_backward", mutates_args=())
def _backward(
    dout: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    projected: torch.Tensor,
    order: torch.Tensor,
    row_of: torch.Tensor,
    ends: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, gate_up, down and the weights."""
    E, _, F = down.shape
    dy = _permute(dout.contiguous(), row_of, ends)
    hidden = grouped_mm(dy, _aligned(down), offs=ends)  # its gradient first
    dprojected, dweights = torch.empty_like(projected), torch.empty_like(weights, memory_format=torch.contiguous_format)
    kernels.activate_backward[(len(order),)](
        projected, weights.contiguous(), order, ends, hidden, dprojected, dweights,
        E=E, F=F, BLOCK=min(_BLOCK, power_of_two(F)),
    )  # fmt: skip
    # Left operands transposed, right ones not: the layout in which groups may be empty and begin at any row.
    ddown = grouped_mm(dy.t(), hidden, offs=ends)
    del dy, hidden
    dgate_up = grouped_mm(dprojected.t(), _permute(x.contiguous(), row_of, ends), offs=ends)
    # On the Blackwell of data centres grouped_mm gives what no row added to (pytorch/pytorch#172439).
    kernels.clear_idle[(E, _CLEARING)](dgate_up, ddown, ends, D=x.shape[1], F=F, BLOCK=_BLOCK)
    drows = grouped_mm(dprojected, _aligned(gate_up), offs=ends)
    return unpermute(drows, row_of, ends, len(x)), dgate_up, ddown, dweights


@_backward.register_fake
def _(dout, x, gate_up, down, weights, projected, order, row_of, ends):
    return tuple(t.new_empty(t.shape) for t in (x, gate_up, down, weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, gate_up, down, _, weights, _ = inputs
    ctx.save_for_backward(x, gate_up, down, weights, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if grads[0] is None:
        return (None,) * 6
    dx, dgate_up, ddown, dweights = _backward(grads[0], *ctx.saved_tensors)
    return dx, dgate_up, ddown, None, dweights, None


_forward.register_autograd(_differentiate, setup_context=_save)


def swiglu_experts_triton(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """See :func:`leyden.ops.swiglu_experts`.

    Raises:
        ValueError: shapes that grouped_mm does not take.
    """
    reason = reason_against(x, down)
    if reason is not None:
        raise ValueError(f"swiglu_experts: backend='triton' cannot run: {reason}; use 'auto' or 'torch'.")
    return _forward(x, gate_up, down, experts, weights.float(), kept)[0]
