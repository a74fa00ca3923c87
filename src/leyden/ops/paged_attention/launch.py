"""What is launched for one call of paged attention in Triton: two kernels, nothing read back from the device."""

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, padded, power_of_two, products
from leyden.ops.paged_attention import kernels as jitted

kernels = Kernels(jitted)

_LEAST = 512
"""Keys of a piece, or a multiple. Its partial result is then at most 3 % of what is read, with 8 queries to a key."""

_PIECES = 64
"""Of a sequence, at most, however long it is: their results are kept until they are combined."""

_BLOCK_BYTES = 16384
"""Of the keys that a program reads at once: 64 keys of 128 dims in bfloat16. More do not fit its registers, and with
those that it reads ahead, not the shared memory of small GPUs."""

_STAGES = 5
"""The page of a key has to be read before the key: with fewer, keys are waited for as soon as they are asked for."""


@torch.library.custom_op("leyden::paged_attention", mutates_args=())
def _paged_attention(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """Without a gradient: it is for decoding."""
    (B, H, D), (_, page, key_heads, _) = q.shape, key_pages.shape
    group, num_pieces = H // key_heads, min(_PIECES, max(1, blocks(block_table.shape[1] * page, _LEAST)))
    parts = q.new_empty(B, H, num_pieces, D, dtype=torch.float32)
    weights = q.new_empty(B, H, num_pieces, dtype=torch.float32)
    out = q.new_empty(q.shape)
    width, (product, precision) = padded(D), products(q.dtype)
    kernels.attend[(B, key_heads, num_pieces)](
        q, key_pages, value_pages, block_table, lengths, parts, weights, D**-0.5, num_pieces,
        *q.stride()[:2], *key_pages.stride()[:3], *value_pages.stride()[:3], block_table.stride(0),
        H=H, GROUP=group, D=D, BG=padded(group), BD=width, PAGE=page, LEAST=_LEAST, PIECES=_PIECES,
        BLOCK=_BLOCK_BYTES // (max(width, 128) * q.element_size()), PRODUCT=product, PRECISION=precision,
        num_warps=4 if width * q.element_size() <= 256 else 8, num_stages=_STAGES,
    )  # fmt: skip
    kernels.combine[(B, H)](
        parts, weights, lengths, out, num_pieces,
        H=H, D=D, BD=power_of_two(D), LEAST=_LEAST, PIECES=_PIECES, num_warps=4,
    )  # fmt: skip
    return out


@_paged_attention.register_fake
def _(q, key_pages, value_pages, block_table, lengths):
    return q.new_empty(q.shape)


def paged_attention_triton(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """See :func:`leyden.ops.paged_attention`."""
    rows = (last_dim_contiguous(x) for x in (q, key_pages, value_pages, block_table))
    return _paged_attention(*rows, lengths.contiguous())
