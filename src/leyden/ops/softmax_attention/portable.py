"""Softmax attention in plain PyTorch: blocks of queries on a CPU, ``scaled_dot_product_attention`` elsewhere."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from leyden.ops.softmax_attention.blocks import BlockAttention

# Queries handled at once when they start behind a cache: bounds the mask to this many rows.
_QUERY_BLOCK = 1024


def softmax_attention_portable(
    q_BTHD: torch.Tensor, k_BSGD: torch.Tensor, v_BSGD: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> torch.Tensor:
    """See :func:`leyden.ops.softmax_attention`."""
    T, S = q_BTHD.shape[1], k_BSGD.shape[1]
    if q_BTHD.device.type == "cpu" and T > 1:
        return BlockAttention.apply(q_BTHD, k_BSGD, v_BSGD, None if cu_seqlens is None else cu_seqlens.tolist(), False)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
    if cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        pieces = [_causal(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
        out = torch.cat(pieces, dim=2)
    elif T in (S, 1):
        out = _causal(q, k, v)
    else:
        out = _behind_a_cache(q, k, v)
    return out.transpose(1, 2)


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As many queries as keys, or a single query that sees all keys."""
    return scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1])


def _behind_a_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Fewer queries than keys; the native causal flag would align them to the first key, not to the last."""
    T, S = q.shape[2], k.shape[2]
    pieces = []
    for start in range(0, T, _QUERY_BLOCK):
        rows = q[:, :, start : start + _QUERY_BLOCK]
        end = S - T + start + rows.shape[2]
        visible = torch.ones(rows.shape[2], end, dtype=torch.bool, device=q.device).tril(end - rows.shape[2])
        pieces.append(
            scaled_dot_product_attention(
                rows, k[:, :, :end], v[:, :, :end], attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(pieces, dim=2)
