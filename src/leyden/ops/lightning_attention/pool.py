"""Lightning attention for serving: states in a pool, addressed by slot and updated in place; no gradients."""

import torch

from leyden.ops.backend import choose
from leyden.ops.lightning_attention.checks import check_inputs, check_pool
from leyden.ops.lightning_attention.native import prefill_natively
from leyden.ops.lightning_attention.portable import lightning_attention_portable, step_portable
from leyden.ops.lightning_attention.reference import lightning_attention_reference
from leyden.ops.native import LANES


def lightning_attention_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """:func:`lightning_attention` of a ragged batch whose states live in a pool, updated in place; no gradients.

    Args:
        q, k: [1, T, H, K].
        v: [1, T, H, V].
        slopes: [H].
        states: [S, H, K, V] float32, contiguous; rows ``slots`` are read and overwritten.
        slots: [N] integers from 0 to S - 1, each at most once: the row of each document.
        cu_seqlens: [N+1] integers from 0 to T.
        backend: as of :func:`lightning_attention`, or ``"native"``.

    Returns:
        The output [1, T, H, V] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q, k, v, slopes, None, cu_seqlens)
    check_pool(q, v, states, slots, len(cu_seqlens) - 1)
    native = q.dtype if backend == "native" or v.shape[-1] % LANES == 0 else None
    given = (q, k, v, slopes, states, slots)
    chosen = choose("lightning_attention_prefill", backend, *given, triton=q.dtype, native=native)
    if chosen == "native":
        return prefill_natively(q, k, v, slopes, states, slots, cu_seqlens)
    if chosen == "triton":
        from leyden.ops.lightning_attention.launch import prefill

        return prefill(q[0], k[0], v[0], slopes.float(), states, slots, cu_seqlens)[None]
    body = lightning_attention_reference if chosen == "reference" else lightning_attention_portable
    out, ends = body(q, k, v, slopes, states[slots], cu_seqlens)
    states[slots] = ends.to(states.dtype)
    return out


def lightning_attention_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """:func:`lightning_attention_step` of sequences whose states live in a pool, updated in place; no gradients.

    Args:
        q, k: [B, H, K].
        v: [B, H, V].
        slopes: [H].
        states: [S, H, K, V] float32, contiguous; rows ``slots`` are read and overwritten.
        slots: [B] integers below S, each at most once: the row of each sequence. A negative one is no sequence (a
            batch filled up to a fixed size); its output is zero.
        backend: as of :func:`lightning_attention`.

    Returns:
        The output [B, H, V] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    check_inputs(q[:, None], k[:, None], v[:, None], slopes, None, None)
    check_pool(q[:, None], v[:, None], states, slots, q.shape[0], negative=True)
    if choose("lightning_attention", backend, q, k, v, slopes, states, slots, triton=q.dtype) == "triton":
        from leyden.ops.lightning_attention.launch import decode

        return decode(q, k, v, slopes.float(), states, slots)
    there = slots >= 0
    out = torch.zeros_like(v)
    out[there], new = step_portable(q[there], k[there], v[there], slopes, states[slots[there]])
    states[slots[there]] = new
    return out
