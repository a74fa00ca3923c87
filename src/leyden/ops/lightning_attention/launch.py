"""What is launched for one call of lightning attention in Triton, and its gradients.

Everything here is decided from shapes and the kind of GPU alone (``plan.py``), so that the same inputs give the same
bits there, and nothing is read back from the device. Nothing but the kernels is launched: no tables are made before
them.
"""

from typing import Any

import torch

from leyden.ops.launching import last_dim_contiguous
from leyden.ops.lightning_attention.plan import LaunchPlan
from leyden.ops.lightning_attention.walk import Walk, decode_token


@torch.library.custom_op("leyden::lightning_attention", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_documents: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [tokens, H, *] to the outputs, the final states, and the states that segments begin from (or nothing)."""
    walk = Walk.of(q, v, slopes, cu_seqlens, num_documents)
    final = walk.states(k, v, num_documents)
    entries = walk.entries(k, v, initial_state, final)
    out = walk.attend(q, k, v, initial_state, entries, final)
    return out, final, final.new_empty(0) if entries is None else entries


@_forward.register_fake
def _(q, k, v, slopes, initial_state, cu_seqlens, num_documents):
    longest = q.shape[0] // max(1, num_documents) if cu_seqlens is None else q.shape[0]
    plan = LaunchPlan.of(q, v, num_documents, longest)
    final = q.new_empty(num_documents, *q.shape[1:], v.shape[2], dtype=torch.float32)
    entries = final.new_empty(plan.num_segments, *final.shape[1:]) if plan.split else final.new_empty(0)
    return v.new_empty(v.shape), final, entries


@torch.library.custom_op("leyden::lightning_attention_backward", mutates_args=())
def _backward(
    dout: torch.Tensor,
    dfinal: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    entries: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_documents: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v and the initial state, if there was one; the same computation three times, twice with
    time reversed."""
    walk = Walk.of(q, v, slopes, cu_seqlens, num_documents)
    dq = walk.attend(dout, v, k, initial_state, entries, None, transposed=True)
    dinitial = None if initial_state is None else walk.states(q, dout, num_documents)
    dentries = walk.entries(q, dout, dfinal, dinitial, reverse=True)
    dv = walk.attend(k, q, dout, dfinal, dentries, dinitial, reverse=True)
    dk = walk.attend(v, dout, q, dfinal, dentries, None, transposed=True, reverse=True)
    return dq, dk, dv, slopes.new_empty(0) if dinitial is None else dinitial


@_backward.register_fake
def _(dout, dfinal, q, k, v, slopes, initial_state, entries, cu_seqlens, num_documents):
    dinitial = slopes.new_empty(0) if initial_state is None else torch.empty_like(initial_state)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dinitial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, slopes, initial_state, cu_seqlens, ctx.num_documents = inputs
    ctx.save_for_backward(q, k, v, slopes, initial_state, output[2] if output[2].numel() else None, cu_seqlens)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, slopes, initial_state, *others = ctx.saved_tensors
    dout = torch.zeros_like(v) if grads[0] is None else last_dim_contiguous(grads[0])
    dfinal = None if grads[1] is None else grads[1].contiguous()
    dq, dk, dv, dinitial = _backward(dout, dfinal, q, k, v, slopes, initial_state, *others, ctx.num_documents)
    return dq, dk, dv, None, None if initial_state is None else dinitial, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("leyden::lightning_attention_prefill", mutates_args=("states",))
def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
) -> torch.Tensor:
    """Rows of documents whose states are rows ``slots`` of ``states``, read and written there."""
    q, k, v = (last_dim_contiguous(x) for x in (q, k, v))
    walk = Walk.of(q, v, slopes, cu_seqlens, len(slots))
    entries = walk.entries(k, v, states, states, slots=slots)
    return walk.attend(q, k, v, states, entries, states, slots=slots)


@prefill.register_fake
def _(q, k, v, slopes, states, slots, cu_seqlens):
    return v.new_empty(v.shape)


@torch.library.custom_op("leyden::lightning_attention_decode", mutates_args=("states",))
def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """One token [B, H, *] of each sequence; the states are read and written in place."""
    return decode_token(q, k, v, states, states, slots, slopes=slopes)


@decode.register_fake
def _(q, k, v, slopes, states, slots):
    return v.new_empty(v.shape)


@torch.library.custom_op("leyden::lightning_attention_step", mutates_args=())
def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token [B, H, *] of each sequence, from its own row of ``states`` to a new one."""
    new = torch.empty_like(states, memory_format=torch.contiguous_format)
    return decode_token(q, k, v, states.contiguous(), new, None, slopes=slopes), new


@step.register_fake
def _(q, k, v, slopes, states):
    return v.new_empty(v.shape), states.new_empty(states.shape)


def lightning_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`."""
    rows = (last_dim_contiguous(x.flatten(0, 1)) for x in (q, k, v))
    initial = None if initial_state is None else initial_state.float().contiguous()
    num_documents = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    out, final, _ = _forward(*rows, slopes.float(), initial, cu_seqlens, num_documents)
    return out.view(v.shape), final
