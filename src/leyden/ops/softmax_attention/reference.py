"""Softmax attention by its formula, the whole matrix of a document's scores at once, in float32 or float64."""

import itertools
import math

import torch


def softmax_attention_reference(
    q_BTHD: torch.Tensor,
    k_BSGD: torch.Tensor,
    v_BSGD: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """See :func:`leyden.ops.softmax_attention`."""
    if cu_seqlens is not None:
        spans = [slice(*pair) for pair in itertools.pairwise(cu_seqlens.tolist())]
        parts = [
            softmax_attention_reference(q_BTHD[:, span], k_BSGD[:, span], v_BSGD[:, span], None, window, softcap)
            for span in spans
        ]
        return torch.cat(parts, dim=1)
    T, H, D = q_BTHD.shape[1:]
    S, G = k_BSGD.shape[1:3]
    dtype = torch.promote_types(q_BTHD.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in (q_BTHD, k_BSGD, v_BSGD))
    k, v = k.repeat_interleave(H // G, dim=2), v.repeat_interleave(H // G, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    query, key = torch.arange(S - T, S, device="cpu")[:, None], torch.arange(S, device="cpu")[None, :]
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    scores = scores.masked_fill(~visible.to(q.device), -math.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).to(q_BTHD.dtype)
