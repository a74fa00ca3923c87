"""Lightning attention by ``native.cpp``, whose products are float32 in bfloat16 as well.

Its gradients are the same recurrence over other tensors (docs/math.md), twice against time:

    dq = attention(dout, v, k),   dv = attention(k, q, dout) and dk = attention(v, dout, q) with time reversed
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from leyden.ops.lightning_attention.portable import lightning_attention_portable
from leyden.ops.native import LANES, call


def prefill_natively(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    backwards: bool = False,
) -> torch.Tensor:
    """See :func:`leyden.ops.lightning_attention_prefill`; ``backwards`` begins with the last token of each sequence."""
    width = v.shape[-1]
    if width % LANES:
        raise ValueError(f"lightning attention: native takes value dims that {LANES} divides; given {width}.")
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # the thirds of one projection, perhaps
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    slots, bounds = slots.long().contiguous(), cu_seqlens.long().contiguous()
    sizes = (*q.shape[1:], width, states.shape[0], slots.shape[0], bounds.shape[0])
    given = (q, k, v, slopes.float().contiguous(), states, slots, bounds, *sizes, int(backwards), out)
    call("leyden_lightning_prefill", q.dtype, *given)
    return out


def lightning_attention_native(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`; every row, or every packed document, has a state of its own."""
    K = q.shape[-1]
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, initial_state))
    if learns and K % LANES:
        raise ValueError(f"lightning attention: native has gradients for key dims that {LANES} divides; given {K}.")
    return _Attention.apply(q, k, v, slopes, initial_state, cu_seqlens)


def gradients_pay(q: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None) -> bool:
    """Whether it has gradients for these widths, and work for every thread.

    A thread takes a whole sequence of a head; PyTorch's body shares out the chunks of a sequence.
    """
    sequences = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    return q.shape[-1] % LANES == 0 and v.shape[-1] % LANES == 0 and sequences * q.shape[2] >= torch.get_num_threads()


class _Attention(torch.autograd.Function):
    """Saved for the backward are the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor,
        initial_state: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bounds, state = sequences(q, v, initial_state, cu_seqlens)
        q_row, k_row, v_row = as_one_row(q, k, v)
        out = prefill_natively(q_row, k_row, v_row, slopes, state, all_of(state), bounds)
        ctx.save_for_backward(q, k, v, slopes, initial_state, cu_seqlens, bounds)
        ctx.set_materialize_grads(False)
        return out.view_as(v), state

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the names)
        ctx: Any, *grads: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, slopes, initial_state, cu_seqlens, bounds = ctx.saved_tensors
        dout, dfinal = grads
        dout = torch.zeros_like(v) if dout is None else dout
        if dfinal is not None:
            return _of_the_final_state(q, k, v, slopes, initial_state, cu_seqlens, dout, dfinal)
        (N, H, K, V), rows = (len(bounds) - 1, *q.shape[2:], v.shape[-1]), as_one_row(q, k, v, dout)
        q_rows, k_rows, v_rows, douts = rows

        def scan(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, state: torch.Tensor, **time: bool) -> torch.Tensor:
            return prefill_natively(a, b, c, slopes, state, all_of(state), bounds, **time)

        before, after = q.new_zeros(N, H, V, K, dtype=torch.float32), q.new_zeros(N, H, K, V, dtype=torch.float32)
        if initial_state is not None:
            before.copy_(initial_state.mT)
        dq = scan(douts, v_rows, k_rows, before)
        dv = scan(k_rows, q_rows, douts, after, backwards=True)
        dk = scan(v_rows, douts, q_rows, before.zero_(), backwards=True)
        dinitial = None
        if initial_state is not None:  # what the first token's state gets, which is decayed once
            dinitial = (after * torch.exp(-slopes.float())[:, None, None]).to(initial_state.dtype)
        return dq.view_as(q), dk.view_as(k), dv.view_as(v), None, dinitial, None


def _of_the_final_state(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    dout: torch.Tensor,
    dfinal: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """All gradients by PyTorch's body, where the final state has one too, which training never asks for."""
    with torch.enable_grad():
        given = [None if x is None else x.detach().requires_grad_() for x in (q, k, v, initial_state)]
        results = lightning_attention_portable(given[0], given[1], given[2], slopes, given[3], cu_seqlens)  # pyright: ignore[reportArgumentType]
    inputs = [x for x in given if x is not None]
    found = torch.autograd.grad(results, inputs, (dout, dfinal))
    return (*found[:3], None, found[3] if initial_state is not None else None, None)


def sequences(
    q: torch.Tensor, v: torch.Tensor, initial_state: torch.Tensor | None, cu_seqlens: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds [N + 1] of rows, or of packed documents, in one row, and a state [N, H, K, V] of each in float32."""
    B, T, H, K = q.shape
    bounds = torch.arange(B + 1, device=q.device) * T if cu_seqlens is None else cu_seqlens
    state = q.new_zeros(len(bounds) - 1, H, K, v.shape[-1], dtype=torch.float32)
    if initial_state is not None:
        state.copy_(initial_state)
    return bounds, state


def as_one_row(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """[B, T, ...] as [1, B T, ...]."""
    return [x.reshape(1, -1, *x.shape[2:]) for x in tensors]


def all_of(states: torch.Tensor) -> torch.Tensor:
    """The slots of all states, in order."""
    return torch.arange(len(states), device=states.device)
