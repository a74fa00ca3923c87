"""Paged attention by its formula, query by query, in float32 or float64."""

import math

import torch


def paged_attention_reference(
    q_BHD: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    softcap: float | None = None,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_attention`."""
    (H, D), (page, G) = q_BHD.shape[1:], key_pages.shape[1:3]
    dtype = torch.promote_types(q_BHD.dtype, torch.float32)
    out = torch.zeros_like(q_BHD)
    for sequence, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        pages = block_table[sequence, : -(-length // page)].long()
        k, v = (x[pages].flatten(0, 1)[:length].to(dtype) for x in (key_pages, value_pages))
        k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
        scores = torch.einsum("hd,shd->hs", q_BHD[sequence].to(dtype), k) / math.sqrt(D)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[sequence] = torch.einsum("hs,shd->hd", scores.softmax(-1), v).to(q_BHD.dtype)
    return out


def paged_prompt_attention_reference(
    q_THD: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    pages: torch.Tensor,
    length: int,
    softcap: float | None = None,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_prompt_attention`."""
    tables = pages.expand(len(q_THD), -1)
    lengths = torch.arange(length - len(q_THD) + 1, length + 1, device=q_THD.device)
    return paged_attention_reference(q_THD, key_pages, value_pages, tables, lengths, softcap)
