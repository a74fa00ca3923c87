"""Softmax attention of one query a sequence over keys and values in pages, as a server keeps them."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_indices
from leyden.ops.native import in_reach
from leyden.ops.paged_attention.portable import paged_attention_portable
from leyden.ops.paged_attention.reference import paged_attention_reference

__all__ = ["paged_attention"]


def paged_attention(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """``softmax(q k^T / sqrt(D)) v`` over the first ``lengths[b]`` keys of each sequence; no gradients.

    Key t of sequence b is ``key_pages[block_table[b, t // page], t % page]``. On Triton, a sequence gives the same bits
    whatever else is in the batch, and however wide the table.

    Args:
        q: [B, Hq, D], the newest token of each sequence, whose own key is the last of its keys.
        key_pages, value_pages: [P, page, Hkv, D], dtype of q; Hq is a multiple of Hkv and query head h reads key head
            h // (Hq / Hkv).
        block_table: [B, max_pages] int32, from 0 to P - 1; entries behind a sequence's last page are not looked at.
        lengths: [B] int32, from 0 to max_pages * page; a sequence of length 0 gives zeros.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` or ``"triton"``.

    Returns:
        [B, Hq, D] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check(q, key_pages, value_pages, block_table, lengths)
    chosen = choose("paged_attention", backend, q, key_pages, value_pages, block_table, lengths, triton=q.dtype)
    if chosen == "reference":
        return paged_attention_reference(q, key_pages, value_pages, block_table, lengths)
    if chosen == "triton":
        from leyden.ops.paged_attention.launch import paged_attention_triton  # triton, where it is used

        return paged_attention_triton(q, key_pages, value_pages, block_table, lengths)
    return paged_attention_portable(q, key_pages, value_pages, block_table, lengths)


def _check(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    fit = q.ndim == 3 and key_pages.ndim == 4 and key_pages.shape == value_pages.shape
    if not fit or q.shape[2] != key_pages.shape[3] or not key_pages.shape[2] or q.shape[1] % key_pages.shape[2] != 0:
        raise ValueError(
            "paged_attention: q [B, Hq, D] and pages [P, page, Hkv, D] with Hq a multiple of Hkv expected; given q "
            f"{tuple(q.shape)}, key_pages {tuple(key_pages.shape)}, value_pages {tuple(value_pages.shape)}."
        )
    if not (q.dtype == key_pages.dtype == value_pages.dtype and q.is_floating_point()):
        given = f"q {q.dtype}, key_pages {key_pages.dtype}, value_pages {value_pages.dtype}"
        raise ValueError(f"paged_attention: one dtype, a floating one, expected; given {given}.")
    B = q.shape[0]
    if block_table.ndim != 2 or block_table.shape[0] != B or lengths.shape != (B,):
        raise ValueError(
            f"paged_attention: block_table [{B}, max_pages] and lengths [{B}] expected; given "
            f"{tuple(block_table.shape)} and {tuple(lengths.shape)}."
        )
    if block_table.dtype != torch.int32 or lengths.dtype != torch.int32:
        given = f"{block_table.dtype} and {lengths.dtype}"
        raise ValueError(f"paged_attention: block_table and lengths in int32 expected; given {given}.")
    page = key_pages.shape[1]
    check_indices("paged_attention", "lengths", lengths, block_table.shape[1] * page + 1)
    if not torch.compiler.is_compiling() and in_reach(lengths) and in_reach(block_table):
        used = torch.arange(block_table.shape[1], device="cpu") * page < lengths[:, None]
        check_indices("paged_attention", "pages", block_table[used], len(key_pages))
