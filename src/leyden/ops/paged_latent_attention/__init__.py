"""Absorbed latent attention: softmax attention of one query a sequence over latents in pages, which all heads share."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating, check_indices
from leyden.ops.native import in_reach
from leyden.ops.paged_latent_attention.portable import paged_latent_attention_portable
from leyden.ops.paged_latent_attention.reference import paged_latent_attention_reference

__all__ = ["paged_latent_attention"]


def paged_latent_attention(
    q: torch.Tensor,
    pages: torch.Tensor,
    width: int,
    scale: float,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """``softmax(scale q m^T) c`` over the first ``lengths[b]`` of what a sequence remembers; no gradients.

    Of token t of sequence b it is m = ``pages[block_table[b, t // page], t % page]``, and c are its first ``width``
    numbers. On Triton, a sequence gives the same bits whatever else is in the batch, and however wide the table.

    Args:
        q: [B, H, D], of the newest token of each sequence, which sees itself as well.
        pages: [P, page, D], dtype of q.
        width: C, from 1 to D.
        scale: of the scores.
        block_table: [B, max_pages] int32, from 0 to P - 1; entries behind a sequence's last page are not looked at.
        lengths: [B] int32, from 0 to max_pages * page; a sequence of length 0 gives zeros.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"triton"``.

    Returns:
        [B, H, C] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    op, B = "paged_latent_attention", q.shape[0]
    fit = q.ndim == pages.ndim == 3 and q.shape[2] == pages.shape[2] and 1 <= width <= q.shape[2]
    if not fit or block_table.ndim != 2 or block_table.shape[0] != B or lengths.shape != (B,):
        raise ValueError(
            f"{op}: q [B, H, D], pages [P, page, D], a width from 1 to D, block_table [B, max_pages] and lengths [B] "
            f"expected; given {tuple(q.shape)}, {tuple(pages.shape)}, {width}, {tuple(block_table.shape)} and "
            f"{tuple(lengths.shape)}."
        )
    check_floating(op, q=q, pages=pages)
    if block_table.dtype != torch.int32 or lengths.dtype != torch.int32:
        given = f"{block_table.dtype} and {lengths.dtype}"
        raise ValueError(f"{op}: block_table and lengths in int32 expected; given {given}.")
    page = pages.shape[1]
    check_indices(op, "lengths", lengths, block_table.shape[1] * page + 1)
    if not torch.compiler.is_compiling() and in_reach(lengths) and in_reach(block_table):
        used = torch.arange(block_table.shape[1], device="cpu") * page < lengths[:, None]
        check_indices(op, "pages", block_table[used], len(pages))
    chosen = choose(op, backend, q, pages, block_table, lengths, triton=q.dtype)
    if chosen == "reference":
        return paged_latent_attention_reference(q, pages, width, scale, block_table, lengths)
    if chosen == "triton":
        from leyden.ops.paged_latent_attention.launch import paged_latent_attention_triton  # triton, where it is used

        return paged_latent_attention_triton(q, pages, width, scale, block_table, lengths)
    return paged_latent_attention_portable(q, pages, width, scale, block_table, lengths)
