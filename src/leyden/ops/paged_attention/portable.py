"""Paged attention in plain PyTorch: the pages gathered, then ``scaled_dot_product_attention`` under a mask."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def paged_attention_portable(
    q_BHD: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_attention`."""
    B, max_pages = block_table.shape
    page, key_heads = key_pages.shape[1:3]
    if B == 0 or max_pages == 0:
        return torch.zeros_like(q_BHD)
    token = torch.arange(max_pages * page, device=q_BHD.device)
    there = token < lengths[:, None]
    # Table entries and tokens behind a sequence's end may be anything: the first read page 0, the second zeros.
    pages = block_table.masked_fill(~there[:, ::page], 0)
    absent = ~there[:, :, None, None]
    k, v = (x[pages].flatten(1, 2).masked_fill(absent, 0).transpose(1, 2) for x in (key_pages, value_pages))
    mask = there[:, None, None]
    out = scaled_dot_product_attention(q_BHD[:, :, None], k, v, attn_mask=mask, enable_gqa=q_BHD.shape[1] != key_heads)
    return out.squeeze(2).masked_fill((lengths == 0)[:, None, None], 0)
