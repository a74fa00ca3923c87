"""Softmax attention over keys and values in pages, as a server keeps them: one query a sequence, or a prompt's."""

import torch

from leyden.ops.backend import choose_capping
from leyden.ops.checks import check_indices
from leyden.ops.native import LANES, in_reach
from leyden.ops.paged_attention.portable import paged_attention_portable, paged_prompt_attention_portable
from leyden.ops.paged_attention.reference import paged_attention_reference, paged_prompt_attention_reference
from leyden.ops.softmax_attention.causal import causal_attention, causal_pays

__all__ = ["paged_attention", "paged_prompt_attention"]


def paged_attention(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    backend: str = "auto",
    *,
    softcap: float | None = None,
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
        softcap: of the scores, as of :func:`softmax_attention`; PyTorch computes it.

    Returns:
        [B, Hq, D] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check(q, key_pages, value_pages, block_table, lengths)
    given = (q, key_pages, value_pages, block_table, lengths)
    chosen = choose_capping("paged_attention", backend, softcap, *given, triton=q.dtype)
    if chosen == "reference":
        return paged_attention_reference(*given, softcap)
    if chosen == "triton":
        from leyden.ops.paged_attention.launch import paged_attention_triton  # triton, where it is used

        return paged_attention_triton(*given)
    return paged_attention_portable(*given, softcap)


def paged_prompt_attention(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    pages: torch.Tensor,
    length: int,
    backend: str = "auto",
    *,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal ``softmax(q k^T / sqrt(D)) v`` of the last T of a sequence's ``length`` tokens; no gradients.

    Key t of the sequence is ``key_pages[pages[t // page], t % page]``; query i sees the keys 0 .. length - T + i. The
    native body reads keys and values where they lie, and needs memory for a block of them alone; a token has the bits
    that :func:`softmax_attention` gives it, whatever other tokens are asked for beside it. The portable body copies
    them; ``"auto"`` takes it where its products are faster.

    Args:
        q: [T, Hq, D].
        key_pages, value_pages: [P, page, Hkv, D], dtype of q; Hq is a multiple of Hkv and query head h reads key head
            h // (Hq / Hkv).
        pages: [N] int32 from 0 to P - 1, at least as many as ``length`` tokens fill; further ones are not looked at.
        length: T or more.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, or ``"native"`` where 16 divides D.
        softcap: of the scores, as of :func:`softmax_attention`; PyTorch computes it.

    Returns:
        [T, Hq, D] in the dtype of q.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a backend that cannot run.
    """
    _check_pages("paged_prompt_attention", q, key_pages, value_pages)
    T, page, D = len(q), key_pages.shape[1], q.shape[2]
    if pages.ndim != 1 or pages.dtype != torch.int32 or not T <= length <= len(pages) * page:
        raise ValueError(
            f"paged_prompt_attention: pages [N] int32 for a length from {T} (as many as the queries) to N * {page} "
            f"expected; given pages {tuple(pages.shape)} {pages.dtype} and length {length}."
        )
    native = q.dtype if D % LANES == 0 else None
    given = (q, key_pages, value_pages, pages)
    chosen = choose_capping("paged_prompt_attention", backend, softcap, *given, native=native)
    used = pages[: -(-length // page)] if length else pages[:0]
    if not torch.compiler.is_compiling() and in_reach(pages):
        check_indices("paged_prompt_attention", "pages", used, len(key_pages))
    if chosen == "reference":
        return paged_prompt_attention_reference(q, key_pages, value_pages, used, length, softcap)
    if chosen == "native" and (backend == "native" or causal_pays(D, q.dtype)):
        keys, values = (x.flatten(0, 1) for x in (key_pages, value_pages))
        return causal_attention(q, keys, values, [0, length], used.contiguous(), page)
    return paged_prompt_attention_portable(q, key_pages, value_pages, used, length, backend, softcap)


def _check_pages(op: str, q: torch.Tensor, key_pages: torch.Tensor, value_pages: torch.Tensor) -> None:
    fit = q.ndim == 3 and key_pages.ndim == 4 and key_pages.shape == value_pages.shape
    if not fit or q.shape[2] != key_pages.shape[3] or not key_pages.shape[2] or q.shape[1] % key_pages.shape[2] != 0:
        raise ValueError(
            f"{op}: q [B, Hq, D] and pages [P, page, Hkv, D] with Hq a multiple of Hkv expected; given q "
            f"{tuple(q.shape)}, key_pages {tuple(key_pages.shape)}, value_pages {tuple(value_pages.shape)}."
        )
    if not (q.dtype == key_pages.dtype == value_pages.dtype and q.is_floating_point()):
        given = f"q {q.dtype}, key_pages {key_pages.dtype}, value_pages {value_pages.dtype}"
        raise ValueError(f"{op}: one dtype, a floating one, expected; given {given}.")


def _check(
    q: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    _check_pages("paged_attention", q, key_pages, value_pages)
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
