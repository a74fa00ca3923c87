"""What is launched for one call of latent attention in Triton: two kernels, nothing read back from the device."""

import torch

from leyden.ops.launching import Kernels, blocks, has_large_memory, last_dim_contiguous, padded, power_of_two, products
from leyden.ops.paged_latent_attention import kernels as jitted

kernels = Kernels(jitted)

_LEAST = 512
"""Tokens of a piece, or a multiple."""

_PIECES = 64
"""Of a sequence, at most, however long it is: their results are kept until they are combined."""

_HEADS = 64
"""Of a program, at most: the sums of 64 heads of 512 numbers fill half of a multiprocessor's registers."""

_BLOCK_BYTES = 32768
"""Of latents that a program reads at once: 32 of 512 numbers in bfloat16, of which a few blocks are under way."""


def _stages(q: torch.Tensor) -> int:
    """How many blocks are read ahead: what the shared memory of the device holds, beside the queries of all heads."""
    narrow = q.element_size() == 2
    return (2 if has_large_memory(q.device) else 1) + narrow


@torch.library.custom_op("leyden::paged_latent_attention", mutates_args=())
def _paged_latent_attention(
    q: torch.Tensor,
    pages: torch.Tensor,
    width: int,
    scale: float,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Without a gradient: it is for decoding."""
    (B, H, D), page = q.shape, pages.shape[1]
    num_pieces = min(_PIECES, max(1, blocks(block_table.shape[1] * page, _LEAST)))
    parts = q.new_empty(B, H, num_pieces, width, dtype=torch.float32)
    weights = q.new_empty(B, H, num_pieces, dtype=torch.float32)
    out = q.new_empty(B, H, width)
    heads, latent, (product, precision) = min(_HEADS, padded(H)), padded(width), products(q.dtype)
    kernels.attend[(B, blocks(H, heads), num_pieces)](
        q, pages, block_table, lengths, parts, weights, scale, num_pieces,
        *q.stride()[:2], *pages.stride()[:2], block_table.stride(0),
        H=H, C=width, R=D - width, BH=heads, BC=latent, BR=padded(D - width), PAGE=page, LEAST=_LEAST, PIECES=_PIECES,
        BLOCK=max(16, min(64, _BLOCK_BYTES // (latent * q.element_size()))), PRODUCT=product, PRECISION=precision,
        num_warps=8, num_stages=_stages(q),
    )  # fmt: skip
    kernels.combine[(B, H)](
        parts, weights, lengths, out, num_pieces,
        H=H, D=width, BD=power_of_two(width), LEAST=_LEAST, PIECES=_PIECES, num_warps=16,
    )  # fmt: skip
    return out


@_paged_latent_attention.register_fake
def _(q, pages, width, scale, block_table, lengths):
    return q.new_empty(*q.shape[:2], width)


def paged_latent_attention_triton(
    q: torch.Tensor,
    pages: torch.Tensor,
    width: int,
    scale: float,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_latent_attention`."""
    q, pages, block_table = (last_dim_contiguous(x) for x in (q, pages, block_table))
    return _paged_latent_attention(q, pages, width, scale, block_table, lengths.contiguous())
