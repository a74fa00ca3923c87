"""Causal softmax attention with grouped queries, over whole rows, packed documents, or a cache; windowed or not."""

import torch

from leyden.ops.backend import choose_capping
from leyden.ops.checks import check_bounds, check_floating
from leyden.ops.softmax_attention.block_attention import BlockAttention
from leyden.ops.softmax_attention.gpu import softmax_attention_gpu
from leyden.ops.softmax_attention.portable import softmax_attention_portable
from leyden.ops.softmax_attention.reference import softmax_attention_reference

__all__ = ["softmax_attention"]


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    backend: str = "auto",
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """``softmax(q k^T / sqrt(D)) v`` over the keys up to each query's own position.

    The T queries are the last T of the S positions that the keys cover: query i sees keys 0 .. S - T + i.

    Args:
        q: [B, T, Hq, D].
        k, v: [B, S, Hkv, D] with S at least T and Hq a multiple of Hkv; query head h reads key head h // (Hq / Hkv).
        cu_seqlens: [N+1] integers from 0 to T: packed documents in one row (B = 1, S = T), none sees another.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"native"`` (which has nothing for a single query).
        window: how many keys a query sees at most, its own the last of them: query i sees key j > i - window. All of
            those before it where None.
        softcap: a score s counts as ``softcap tanh(s / softcap)`` (Gemma 2, arXiv 2408.00118, section 2). The native
            body and those of GPUs have no such thing: PyTorch computes it.

    Returns:
        [B, T, Hq, D] in the dtype of q.

    Raises:
        ValueError: shapes that do not fit together, a window of no key, a softcap that is not above 0, or a backend
            that cannot run.
    """
    fit = q.ndim == k.ndim == 4 and k.shape == v.shape and k.shape[::3] == q.shape[::3] and k.shape[2] > 0
    if not fit or k.shape[1] < q.shape[1] or q.shape[2] % k.shape[2] != 0:
        raise ValueError(
            "softmax_attention: q [B, T, Hq, D] and k, v [B, S, Hkv, D] with S >= T and Hq a multiple of Hkv "
            f"expected; given q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    if cu_seqlens is not None and (q.shape[0] != 1 or k.shape[1] != q.shape[1]):
        raise ValueError("softmax_attention: packed documents lie in one row (B = 1) with as many keys as queries.")
    if cu_seqlens is not None:
        check_bounds("softmax_attention", cu_seqlens, q.shape[1])
    check_floating("softmax_attention", q=q, k=k, v=v)
    if window is not None and window < 1:
        raise ValueError(f"softmax_attention: a window of at least 1 token expected; given {window}.")
    native = q.dtype if q.shape[1] > 1 else None
    chosen = choose_capping("softmax_attention", backend, softcap, q, k, v, native=native)
    if chosen == "reference":
        return softmax_attention_reference(q, k, v, cu_seqlens, window, softcap)
    if chosen == "native":
        return BlockAttention.apply(q, k, v, None if cu_seqlens is None else cu_seqlens.tolist(), window, True, None)
    if q.device.type == "cuda" and softcap is None:
        return softmax_attention_gpu(q, k, v, cu_seqlens, window)
    return softmax_attention_portable(q, k, v, cu_seqlens, window, softcap)
