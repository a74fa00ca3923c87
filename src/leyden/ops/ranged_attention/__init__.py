"""Softmax attention in which every query sees a range of the keys, with what it takes to merge partial results.

A row's queries in the order of their positions, against any of the row's keys in that order, see ranges of them: this
one op is causal attention, packed documents, and each step of a ring over ranks.
"""

import torch

from leyden.ops.backend import choose_capping
from leyden.ops.checks import check_indices
from leyden.ops.ranged_attention.portable import ranged_attention_backward_portable, ranged_attention_portable
from leyden.ops.ranged_attention.reference import ranged_attention_backward_reference, ranged_attention_reference

__all__ = ["ranged_attention", "ranged_attention_backward"]


def ranged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    backend: str = "auto",
    *,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``softmax(q k^T / sqrt(D)) v`` where query i sees keys ``first[i]`` to ``last[i] - 1``; no gradient by itself.

    Results over disjoint sets of keys merge by their log-sum-exps: that of the union is ``logaddexp(a, b)``, and its
    output the sum of the outputs, each weighted by ``exp(its lse - the union's)``.

    Args:
        q: [T, Hq, D], any floating dtype (all three the same).
        k, v: [S, Hkv, D] with Hq a multiple of Hkv; query head h reads key head h // (Hq / Hkv).
        first, last: [T] int32 from 0 to S, on the CPU or where q is. Neither falls from one query to the next. Not
            ``first[i] < last[i]``: query i sees nothing.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"triton"``.
        softcap: of the scores, as of :func:`leyden.ops.softmax_attention`; PyTorch computes it.

    Returns:
        The output [T, Hq, D] and the log-sum-exp of the scaled and capped scores [T, Hq], in float32 (float64 for
        float64); zero and minus infinity where a query sees nothing.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check(q, k, v, first, last)
    chosen = choose_capping("ranged_attention", backend, softcap, q, k, v, triton=q.dtype)
    if chosen == "reference":
        return ranged_attention_reference(q, k, v, first, last, softcap)
    if chosen == "triton":
        from leyden.ops.ranged_attention.launch import ranged_attention_triton  # triton, where it is used

        return ranged_attention_triton(q, k, v, first, last)
    return ranged_attention_portable(q, k, v, first, last, softcap)


def ranged_attention_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    backend: str = "auto",
    *,
    whole: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients that flow through these keys, of an output that may have seen others besides.

        P = exp(S - lse),   dS = P (dO V^T - delta),   dQ = dS K / sqrt(D),   dK = dS^T Q / sqrt(D),   dV = P^T dO

    With a ``softcap`` c, where a score s counts as S = c tanh(s / c), dS is multiplied by 1 - (S / c)^2.

    Gradients over disjoint sets of keys add up.

    Args:
        dout: [T, Hq, D], the gradient of the whole output, in the dtype of q.
        q, k, v, first, last, backend, softcap: as in :func:`ranged_attention`.
        lse: [T, Hq], over all keys that each query sees, here and elsewhere; float32 or float64.
        delta: [T, Hq], the sum over D of ``dout`` times the whole output, float32 or float64; of the output before
            it is rounded, since it is close to dP where one probability is close to 1.
        whole: [T] bool, queries that see no keys elsewhere. The CPU's bodies then take P = softmax(S) and rowsum(P dP)
            for delta, of the very numbers that it is subtracted from: nothing is left where a query sees one key. On a
            GPU that would be another walk over the keys, and delta is subtracted, as in FlashAttention. None: every
            query may see others.

    Returns:
        dq [T, Hq, D], dk and dv [S, Hkv, D], in float32 (float64 for float64).

    Raises:
        ValueError: as :func:`ranged_attention`.
    """
    _check(q, k, v, first, last)
    if dout.shape != q.shape or dout.dtype != q.dtype or lse.shape != q.shape[:2] or delta.shape != q.shape[:2]:
        raise ValueError(
            f"ranged_attention: dout as q, {tuple(q.shape)} in {q.dtype}, and lse and delta {tuple(q.shape[:2])} "
            f"expected; given {tuple(dout.shape)} in {dout.dtype}, {tuple(lse.shape)} and {tuple(delta.shape)}."
        )
    if whole is not None and (whole.shape != q.shape[:1] or whole.dtype != torch.bool):
        raise ValueError(
            f"ranged_attention: whole [{q.shape[0]}] in bool expected; given {tuple(whole.shape)} in {whole.dtype}."
        )
    chosen = choose_capping("ranged_attention", backend, softcap, q, k, v, triton=q.dtype)
    if chosen == "reference":
        return ranged_attention_backward_reference(dout, q, k, v, lse, delta, first, last, whole, softcap)
    if chosen == "triton":
        from leyden.ops.ranged_attention.launch import ranged_attention_backward_triton

        return ranged_attention_backward_triton(dout, q, k, v, lse, delta, first, last)
    return ranged_attention_backward_portable(dout, q, k, v, lse, delta, first, last, whole, softcap)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> None:
    fit = q.ndim == 3 and k.ndim == 3 and k.shape == v.shape
    if not fit or q.shape[2] != k.shape[2] or not k.shape[1] or q.shape[1] % k.shape[1] != 0:
        raise ValueError(
            "ranged_attention: q [T, Hq, D] and k, v [S, Hkv, D] with Hq a multiple of Hkv expected; given q "
            f"{tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"ranged_attention: one floating dtype expected; given {q.dtype}, {k.dtype} and {v.dtype}.")
    if first.shape != q.shape[:1] or last.shape != q.shape[:1] or {first.dtype, last.dtype} != {torch.int32}:
        raise ValueError(
            f"ranged_attention: first and last [{q.shape[0]}] in int32 expected; given {tuple(first.shape)} in "
            f"{first.dtype} and {tuple(last.shape)} in {last.dtype}."
        )
    check_indices("ranged_attention", "first", first, len(k) + 1)
    check_indices("ranged_attention", "last", last, len(k) + 1)
