"""Attention over ranges of keys by its formula, one query after another, in float32 or float64."""

import math
from collections.abc import Iterator

import torch


def ranged_attention_reference(
    q_THD: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGD: torch.Tensor,
    first_T: torch.Tensor,
    last_T: torch.Tensor,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention`."""
    q, k, v = _prepared(q_THD, k_SGD, v_SGD)
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -math.inf)
    for t, keys in _seen(first_T, last_T):
        scores = _scores(q[t], k[keys], softcap)
        lse[t] = scores.logsumexp(-1)
        out[t] = torch.einsum("hs,shd->hd", torch.exp(scores - lse[t, :, None]), v[keys])
    return out, lse


def ranged_attention_backward_reference(
    dout_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGD: torch.Tensor,
    lse_TH: torch.Tensor,
    delta_TH: torch.Tensor,
    first_T: torch.Tensor,
    last_T: torch.Tensor,
    whole_T: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention_backward`."""
    q, k, v = _prepared(q_THD, k_SGD, v_SGD)
    dout = dout_THD.to(q.dtype)
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for t, keys in _seen(first_T, last_T):
        scores = _scores(q[t], k[keys], softcap)
        p = torch.exp(scores - lse_TH[t, :, None])
        dp = torch.einsum("hd,shd->hs", dout[t], v[keys])
        delta = delta_TH[t]
        if whole_T is not None and whole_T[t]:
            p = scores.softmax(-1)
            delta = torch.linalg.vecdot(p, dp)
        ds = p * (dp - delta[:, None]) / math.sqrt(q.shape[2])
        if softcap is not None:
            ds = ds * (1 - (scores / softcap) ** 2)
        dq[t] = torch.einsum("hs,shd->hd", ds, k[keys])
        dk[keys] += torch.einsum("hs,hd->shd", ds, q[t])
        dv[keys] += torch.einsum("hs,hd->shd", p, dout[t])
    dk, dv = (x.unflatten(1, (k_SGD.shape[1], -1)).sum(2) for x in (dk, dv))
    return dq, dk, dv


def _prepared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In the dtype to compute in, one key head a query head."""
    dtype, group = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    k, v = (x.to(dtype).repeat_interleave(group, dim=1) for x in (k, v))
    return q.to(dtype), k, v


def _seen(first: torch.Tensor, last: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Each query that sees something, and the keys that it sees."""
    for t, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if begin < end:
            yield t, slice(begin, end)


def _scores(q: torch.Tensor, k: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """[H, S], of one query."""
    scores = torch.einsum("hd,shd->hs", q, k) / math.sqrt(q.shape[-1])
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
