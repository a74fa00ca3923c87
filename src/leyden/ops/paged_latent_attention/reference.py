"""Latent attention over pages by its formula, head by head, in float32 or float64."""

import torch


def paged_latent_attention_reference(
    q_BHD: torch.Tensor,
    pages: torch.Tensor,
    width: int,
    scale: float,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_latent_attention`."""
    (B, H, _), page = q_BHD.shape, pages.shape[1]
    dtype = torch.promote_types(q_BHD.dtype, torch.float32)
    out = q_BHD.new_zeros(B, H, width)
    for sequence, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        tokens = [pages[int(block_table[sequence, t // page]), t % page].to(dtype) for t in range(length)]
        for head in range(H):
            scores = torch.stack([scale * torch.dot(q_BHD[sequence, head].to(dtype), token) for token in tokens])
            shares = scores.softmax(0)
            mean = sum(share * token[:width] for share, token in zip(shares, tokens, strict=True))
            out[sequence, head] = torch.as_tensor(mean).to(q_BHD.dtype)
    return out
