"""Latent attention over pages in plain PyTorch: one sequence after the other, its pages gathered.

In one call for all, a sequence's bits would depend on how long the others are. Values are keys of which the last dims
are left out behind the product: PyTorch's kernels take keys and values of one width.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention


def paged_latent_attention_portable(
    q_BHD: torch.Tensor,
    pages: torch.Tensor,
    width: int,
    scale: float,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_latent_attention`."""
    page, out = pages.shape[1], q_BHD.new_zeros(*q_BHD.shape[:2], width)
    for b, length in enumerate(lengths.tolist()):
        if length:
            held = pages.index_select(0, block_table[b, : -(-length // page)]).flatten(0, 1)[None, None, :length]
            # All heads see all keys: to the kernel they are the queries of one head.
            out[b] = scaled_dot_product_attention(q_BHD[None, None, b], held, held, scale=scale)[0, 0, :, :width]
    return out
