"""What is launched for one call of gated linear attention in Triton, and its gradients.

The walk from chunk to chunk is that of lightning attention (``lightning_attention/walk.py``); what is done within
chunks comes before it, and behind it in the backward. Nothing is read back from the device.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from leyden.ops.gated_linear_attention import kernels as jitted
from leyden.ops.launching import Kernels, last_dim_contiguous, padded
from leyden.ops.lightning_attention.plan import LaunchPlan
from leyden.ops.lightning_attention.walk import Walk, decode_token

kernels = Kernels(jitted)

_LONGEST_CHUNK = {torch.bfloat16: 64, torch.float16: 32, torch.float32: 32}
"""Tokens, where lightning attention would take more: products of float32 matrices of 64 by 64 do not fit registers."""

_WEIGHED_DIMS = {torch.bfloat16: 32, torch.float16: 16, torch.float32: 16}
_DIFFERENTIATED_DIMS = 16
"""Dims of a chunk that are worked on together, as many as registers hold."""

_NUM_WARPS = 4


def _between(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what one kernel leaves to the next, in which products take it; float16 could overflow."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


@dataclass(frozen=True)
class _Chunks:
    """What the walk takes; :func:`kernels.weigh` says what each is.

    Attributes:
        walk: with the sums of log decays over chunks.
        weights: [tokens, H, C].
        queries, keys: [tokens, H, K].
    """

    walk: Walk
    weights: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor

    @classmethod
    def of(
        cls,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        log_decay: torch.Tensor,
        cu_seqlens: torch.Tensor | None,
        num_documents: int,
    ) -> "_Chunks":
        """Launches what makes them."""
        walk = Walk.of(q, v, None, cu_seqlens, num_documents)
        tiles = walk.plan.tiles
        (T, H, K), C, dtype = q.shape, min(tiles.chunk, _LONGEST_CHUNK[q.dtype]), _between(q.dtype)
        walk = replace(walk, plan=replace(walk.plan, tiles=replace(tiles, chunk=C)))
        num_chunks = T // C + num_documents
        totals = torch.empty(num_chunks, H, K, dtype=torch.float32, device=q.device)
        weights = torch.empty(T, H, C, dtype=dtype, device=q.device)
        queries, keys = (torch.empty(T, H, K, dtype=dtype, device=q.device) for _ in range(2))
        kernels.weigh[(num_chunks * H,)](
            q, k, log_decay, weights, queries, keys, totals, cu_seqlens, num_documents, walk.length,
            *q.stride()[:2], *k.stride()[:2], *log_decay.stride()[:2],
            H=H, K=K, BK=min(padded(K), _WEIGHED_DIMS[q.dtype]), **_of_chunks(walk),
        )  # fmt: skip
        return cls(replace(walk, totals=totals), weights, queries, keys)


def _of_chunks(walk: Walk) -> dict[str, Any]:
    """The compile-time constants of the kernels that work within chunks."""
    chunk = walk.plan.tiles.chunk
    return {
        "C": chunk,
        "LEVELS": chunk.bit_length() - 1,
        "RAGGED": walk.cu_seqlens is not None,
        "PRODUCT": walk.product,
        "PRECISION": walk.precision,
        "num_warps": _NUM_WARPS,
    }


@torch.library.custom_op("leyden::gated_linear_attention", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_documents: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [tokens, H, *] to the outputs, the final states, and the states that segments begin from (or nothing)."""
    chunks = _Chunks.of(q, k, v, log_decay, cu_seqlens, num_documents)
    walk, queries, keys = chunks.walk, chunks.queries, chunks.keys
    final = walk.states(k, v, num_documents)
    entries = walk.entries(keys, v, initial_state, final)
    out = walk.attend(queries, keys, v, initial_state, entries, final, weights=chunks.weights, dtype=v.dtype)
    return out, final, final.new_empty(0) if entries is None else entries


@_forward.register_fake
def _(q, k, v, log_decay, initial_state, cu_seqlens, num_documents):
    longest = q.shape[0] // max(1, num_documents) if cu_seqlens is None else q.shape[0]
    plan = LaunchPlan.of(q, v, num_documents, longest)
    final = q.new_empty(num_documents, *q.shape[1:], v.shape[2], dtype=torch.float32)
    entries = final.new_empty(plan.num_segments, *final.shape[1:]) if plan.split else final.new_empty(0)
    return v.new_empty(v.shape), final, entries


@torch.library.custom_op("leyden::gated_linear_attention_backward", mutates_args=())
def _backward(
    dout: torch.Tensor,
    dfinal: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None,
    entries: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_documents: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v, the log decays and the initial state, if there was one.

    What a forward made within chunks is made again. The states at the beginnings of chunks are kept while this runs:
    the gradients of decays take them together with the states' gradients, which come in the other direction.
    """
    chunks = _Chunks.of(q, k, v, log_decay, cu_seqlens, num_documents)
    walk, queries, keys, totals = chunks.walk, chunks.queries, chunks.keys, chunks.walk.totals
    (T, H, K), V, dtype = q.shape, v.shape[2], queries.dtype
    assert totals is not None, "of gated linear attention"
    passed = torch.empty(len(totals), H, V, K, dtype=dtype, device=q.device)
    met = torch.empty_like(totals)
    back = {"transposed": True, "passed": passed, "met": met, "dtype": dtype}
    far_q = walk.attend(dout, v, keys, initial_state, entries, None, **back)
    dinitial = None if initial_state is None else walk.states(q, dout, num_documents)
    dentries = walk.entries(queries, dout, dfinal, dinitial, reverse=True)
    dv = walk.attend(
        keys, queries, dout, dfinal, dentries, dinitial, reverse=True, weights=chunks.weights, dtype=v.dtype
    )
    far_k = walk.attend(v, dout, queries, dfinal, dentries, None, reverse=True, **back)
    dq, dk = (torch.empty(T, H, K, dtype=q.dtype, device=q.device) for _ in range(2))
    dlog_decay = torch.empty(T, H, K, dtype=torch.float32, device=q.device)
    kernels.differentiate[(len(totals) * H,)](
        q, k, v, dout, log_decay, far_q, far_k, met, dq, dk, dlog_decay, cu_seqlens, num_documents, walk.length,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *dout.stride()[:2], *log_decay.stride()[:2],
        H=H, K=K, V=V, BK=_DIFFERENTIATED_DIMS, BV=_DIFFERENTIATED_DIMS, **_of_chunks(walk),
    )  # fmt: skip
    return dq, dk, dv, dlog_decay, log_decay.new_empty(0) if dinitial is None else dinitial


@_backward.register_fake
def _(dout, dfinal, q, k, v, log_decay, initial_state, entries, cu_seqlens, num_documents):
    dinitial = log_decay.new_empty(0) if initial_state is None else torch.empty_like(initial_state)
    return (*(x.new_empty(x.shape) for x in (q, k, v, log_decay)), dinitial)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *given, cu_seqlens, ctx.num_documents = inputs
    ctx.save_for_backward(*given, output[2] if output[2].numel() else None, cu_seqlens)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, log_decay, initial_state, *others = ctx.saved_tensors
    dout = torch.zeros_like(v) if grads[0] is None else last_dim_contiguous(grads[0])
    dfinal = None if grads[1] is None else grads[1].contiguous()
    found = _backward(dout, dfinal, q, k, v, log_decay, initial_state, *others, ctx.num_documents)
    return (*found[:4], None if initial_state is None else found[4], None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("leyden::gated_linear_attention_prefill", mutates_args=("states",))
def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
) -> torch.Tensor:
    """Rows of documents whose states are rows ``slots`` of ``states``, read and written there."""
    q, k, v, log_decay = (last_dim_contiguous(x) for x in (q, k, v, log_decay))
    chunks = _Chunks.of(q, k, v, log_decay, cu_seqlens, len(slots))
    walk, queries, keys = chunks.walk, chunks.queries, chunks.keys
    entries = walk.entries(keys, v, states, states, slots=slots)
    weights = chunks.weights
    return walk.attend(queries, keys, v, states, entries, states, slots=slots, weights=weights, dtype=v.dtype)


@prefill.register_fake
def _(q, k, v, log_decay, states, slots, cu_seqlens):
    return v.new_empty(v.shape)


@torch.library.custom_op("leyden::gated_linear_attention_decode", mutates_args=("states",))
def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """One token [B, H, *] of each sequence; the states are read and written in place."""
    return decode_token(q, k, v, states, states, slots, log_decay=last_dim_contiguous(log_decay))


@decode.register_fake
def _(q, k, v, log_decay, states, slots):
    return v.new_empty(v.shape)


@torch.library.custom_op("leyden::gated_linear_attention_step", mutates_args=())
def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token [B, H, *] of each sequence, from its own row of ``states`` to a new one."""
    new = torch.empty_like(states, memory_format=torch.contiguous_format)
    log_decay = last_dim_contiguous(log_decay)
    return decode_token(q, k, v, states.contiguous(), new, None, log_decay=log_decay), new


@step.register_fake
def _(q, k, v, log_decay, states):
    return v.new_empty(v.shape), states.new_empty(states.shape)


def gated_linear_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.gated_linear_attention`; ``log_decay`` is [B, T, H, K]."""
    rows = [last_dim_contiguous(x.flatten(0, 1)) for x in (q, k, v, log_decay.float())]
    initial = None if initial_state is None else initial_state.float().contiguous()
    num_documents = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    out, final, _ = _forward(rows[0], rows[1], rows[2], rows[3], initial, cu_seqlens, num_documents)
    return out.view(v.shape), final
