"""Attention over ranges of keys by its formula, the whole matrix of scores at once, in float32 or float64."""

import math

import torch


def ranged_attention_reference(
    q_THD: torch.Tensor, k_SGD: torch.Tensor, v_SGD: torch.Tensor, first_T: torch.Tensor, last_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention`."""
    q, k, v, visible = _prepared(q_THD, k_SGD, v_SGD, first_T, last_T)
    scores = _scores(q, k, visible)
    lse = scores.logsumexp(-1)
    p = torch.where(visible[:, None], torch.exp(scores - lse[..., None]), 0)
    return torch.einsum("ths,shd->thd", p, v), lse


def ranged_attention_backward_reference(
    dout_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGD: torch.Tensor,
    lse_TH: torch.Tensor,
    delta_TH: torch.Tensor,
    first_T: torch.Tensor,
    last_T: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention_backward`."""
    q, k, v, visible = _prepared(q_THD, k_SGD, v_SGD, first_T, last_T)
    dout = dout_THD.to(q.dtype)
    p = torch.where(visible[:, None], torch.exp(_scores(q, k, visible) - lse_TH[..., None]), 0)
    ds = p * (torch.einsum("thd,shd->ths", dout, v) - delta_TH[..., None]) / math.sqrt(q.shape[2])
    dq = torch.einsum("ths,shd->thd", ds, k)
    dk, dv = torch.einsum("ths,thd->shd", ds, q), torch.einsum("ths,thd->shd", p, dout)
    dk, dv = (x.unflatten(1, (k_SGD.shape[1], -1)).sum(2) for x in (dk, dv))
    return dq, dk, dv


def _prepared(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """q, k and v in the dtype to compute in, one key head a query head, and what is visible [T, S]."""
    dtype, group = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    k, v = (x.to(dtype).repeat_interleave(group, dim=1) for x in (k, v))
    key = torch.arange(k.shape[0], device=q.device)
    first, last = first.to(q.device)[:, None], last.to(q.device)[:, None]
    return q.to(dtype), k, v, (first <= key) & (key < last)


def _scores(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """[T, H, S]."""
    scores = torch.einsum("thd,shd->ths", q, k) / math.sqrt(q.shape[2])
    return scores.masked_fill(~visible[:, None], -math.inf)
