"""Gated linear attention for serving: states in a pool, addressed by slot and updated in place; no gradients."""

import torch

from leyden.ops.backend import choose
from leyden.ops.gated_linear_attention.checks import OP, check_inputs
from leyden.ops.gated_linear_attention.native import forward_natively, native_dtype, step_natively
from leyden.ops.gated_linear_attention.portable import gated_linear_attention_portable, step_portable
from leyden.ops.gated_linear_attention.reference import gated_linear_attention_reference
from leyden.ops.lightning_attention.checks import check_pool


def gated_linear_attention_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """:func:`gated_linear_attention` of a ragged batch whose states live in a pool, updated in place; no gradients.

    Args:
        q, k: [1, T, H, K].
        v: [1, T, H, V].
        log_decay: [1, T, H, K] or [1, T, H, 1].
        states: [S, H, K, V] float32, contiguous; rows ``slots`` are read and overwritten.
        slots: [N] integers from 0 to S - 1, each at most once: the row of each document.
        cu_seqlens: [N+1] integers from 0 to T.
        backend: as of :func:`gated_linear_attention`.

    Returns:
        The output [1, T, H, V] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q, k, v, log_decay, None, cu_seqlens)
    check_pool(q, v, states, slots, len(cu_seqlens) - 1, op=OP)
    given = (q, k, v, log_decay, states, slots)
    chosen = choose(f"{OP}_prefill", backend, *given, triton=q.dtype, native=native_dtype(backend, q, v))
    if chosen == "native":
        return forward_natively(q, k, v, log_decay.expand(q.shape), states, slots, cu_seqlens)
    if chosen == "triton":
        from leyden.ops.gated_linear_attention.launch import prefill  # triton, where it is used

        decays = log_decay.float().expand(q.shape)
        return prefill(q[0], k[0], v[0], decays[0], states, slots, cu_seqlens)[None]
    body = gated_linear_attention_reference if chosen == "reference" else gated_linear_attention_portable
    out, ends = body(q, k, v, log_decay, states[slots], cu_seqlens)
    states[slots] = ends.to(states.dtype)
    return out


def gated_linear_attention_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """:func:`gated_linear_attention_step` of sequences whose states live in a pool, updated in place; no gradients.

    Args:
        q, k: [B, H, K].
        v: [B, H, V].
        log_decay: [B, H, K] or [B, H, 1].
        states: [S, H, K, V] float32, contiguous; rows ``slots`` are read and overwritten.
        slots: [B] integers below S, each at most once: the row of each sequence. A negative one is no sequence (a
            batch filled up to a fixed size); its output is zero.
        backend: ``"auto"``, ``"torch"``, ``"triton"``, or ``"native"``, which has the bits of a prefill.

    Returns:
        The output [B, H, V] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q[:, None], k[:, None], v[:, None], log_decay[:, None], None, None)
    check_pool(q[:, None], v[:, None], states, slots, q.shape[0], negative=True, op=OP)
    given = (q, k, v, log_decay, states, slots)
    chosen = choose(f"{OP}_decode", backend, *given, triton=q.dtype, native=native_dtype(backend, q, v))
    if chosen == "triton":
        from leyden.ops.gated_linear_attention.launch import decode

        return decode(q, k, v, log_decay.float().expand(q.shape), states, slots)
    there = slots >= 0
    out, at = torch.zeros_like(v), slots[there]
    q, k, v, log_decay = (x[there] for x in (q, k, v, log_decay))
    if chosen == "native":
        out[there] = step_natively(q, k, v, log_decay, states, at)
    else:
        out[there], states[at] = step_portable(q, k, v, log_decay, states[at])
    return out
