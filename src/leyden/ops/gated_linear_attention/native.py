"""Gated linear attention by ``native.cpp``, token by token in both directions; states and sums are float32."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from leyden.ops.gated_linear_attention.checks import OP
from leyden.ops.lightning_attention.native import all_of, as_one_row, sequences
from leyden.ops.native import LANES, call


def native_dtype(backend: str, q: torch.Tensor, v: torch.Tensor) -> torch.dtype | None:
    """The dtype that the native body would compute in; None where it is not asked for and does not take the widths."""
    return q.dtype if backend == "native" or (q.shape[-1] % LANES == 0 == v.shape[-1] % LANES) else None


def forward_natively(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.gated_linear_attention_prefill`; ``log_decay`` is [1, T, H, K]."""
    K, V = q.shape[-1], v.shape[-1]
    if K % LANES or V % LANES:
        raise ValueError(f"{OP}: native takes key and value dims that {LANES} divides; given {K} and {V}.")
    q, k, v = (_strided(x) for x in (q, k, v))
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    slots, bounds = slots.long().contiguous(), cu_seqlens.long().contiguous()
    sizes = (*q.shape[1:], V, states.shape[0], slots.shape[0], bounds.shape[0])
    decays = log_decay.float().contiguous()
    call("leyden_gated_attention", q.dtype, q, k, v, decays, states, slots, bounds, *sizes, out)
    return out


def step_natively(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """One token [B, H, *] of each of B sequences, whose states are rows ``slots`` of ``states``, changed in place."""
    tokens = [x[None] for x in (q, k, v, log_decay.expand(q.shape))]
    return forward_natively(tokens[0], tokens[1], tokens[2], tokens[3], states, slots, torch.arange(len(q) + 1))[0]


class GatedLinearAttention(torch.autograd.Function):
    """Saved for the backward are the inputs alone; it computes the states again, of some tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        log_decay: torch.Tensor,
        initial_state: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bounds, state = sequences(q, v, initial_state, cu_seqlens)
        rows = as_one_row(q, k, v, log_decay)
        out = forward_natively(rows[0], rows[1], rows[2], rows[3], state, all_of(state), bounds)
        ctx.save_for_backward(q, k, v, log_decay, initial_state, bounds)
        ctx.set_materialize_grads(False)
        return out.view_as(v), state

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the names)
        ctx: Any, *grads: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, log_decay, initial_state, bounds = ctx.saved_tensors
        dout = torch.zeros_like(v) if grads[0] is None else grads[0]
        dfinal = None if grads[1] is None else grads[1].float().contiguous()
        initial = None if initial_state is None else initial_state.float().contiguous()
        rows = [_strided(x) for x in as_one_row(q, k, v)]
        dq, dk, dv, dlog_decay = (
            torch.empty(x.shape, dtype=dtype)
            for x, dtype in ((q, q.dtype), (k, q.dtype), (v, q.dtype), (q, torch.float32))
        )
        (_, tokens, H, K), V, N = rows[0].shape, v.shape[-1], len(bounds) - 1
        dinitial = torch.empty(N, H, K, V)
        call(
            "leyden_gated_attention_backward", q.dtype, dout.contiguous(), dfinal, *rows,
            log_decay.float().contiguous(), initial, bounds.long().contiguous(), tokens, H, K, V, N, N + 1,
            dq, dk, dv, dlog_decay, dinitial,
        )  # fmt: skip
        given = None if initial_state is None else dinitial.to(initial_state.dtype)
        return dq, dk, dv, dlog_decay.to(log_decay.dtype), given, None


def _strided(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
