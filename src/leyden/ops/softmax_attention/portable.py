"""Softmax attention in plain PyTorch: blocks of queries on a CPU, ``scaled_dot_product_attention`` elsewhere."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from leyden.ops.softmax_attention.block_attention import BlockAttention

# Queries handled at once where a mask says what they see: bounds it to this many rows.
_QUERY_BLOCK = 1024


def softmax_attention_portable(
    q_BTHD: torch.Tensor,
    k_BSGD: torch.Tensor,
    v_BSGD: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """See :func:`leyden.ops.softmax_attention`; ``scaled_dot_product_attention`` caps no scores."""
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    if softcap is not None or (q_BTHD.device.type == "cpu" and q_BTHD.shape[1] > 1):
        return BlockAttention.apply(q_BTHD, k_BSGD, v_BSGD, bounds, window, False, softcap)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
    if bounds is None:
        out = _one_document(q, k, v, window)
    else:
        spans = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        out = torch.cat([_one_document(q[:, :, at], k[:, :, at], v[:, :, at], window) for at in spans], dim=2)
    return out.transpose(1, 2)


def _one_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """[B, H, T, D] from the last T of S positions."""
    T, S = q.shape[2], k.shape[2]
    if T == 1 and window is not None:
        k, v = k[:, :, -window:], v[:, :, -window:]
    if T == 1 or (T == S and (window is None or window >= S)):
        return scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=q.shape[1] != k.shape[1])
    return _masked(q, k, v, window)


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Fewer queries than keys, or a window; the native causal flag aligns queries to the first key, not to the last."""
    T, S = q.shape[2], k.shape[2]
    pieces = []
    for start in range(0, T, _QUERY_BLOCK):
        rows = q[:, :, start : start + _QUERY_BLOCK]
        first = S - T + start
        begin, end = 0 if window is None else max(0, first - window + 1), first + rows.shape[2]
        query, key = torch.arange(first, end, device=q.device)[:, None], torch.arange(begin, end, device=q.device)
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        keys, values = k[:, :, begin:end], v[:, :, begin:end]
        grouped = q.shape[1] != k.shape[1]
        pieces.append(scaled_dot_product_attention(rows, keys, values, attn_mask=visible, enable_gqa=grouped))
    return torch.cat(pieces, dim=2) if pieces else q.clone()  # of no queries, and still differentiable
