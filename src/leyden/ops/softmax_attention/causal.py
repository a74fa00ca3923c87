"""Causal attention in C++, over keys and values where they lie (``causal.cpp``)."""

import ctypes
from collections.abc import Sequence

import torch

from leyden.ops.native import LANES, call, library


def causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: Sequence[int],
    pages: torch.Tensor | None = None,
    page: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, Hq, D] of the queries [T, Hq, D] of the last T positions.

    Args:
        q: any strides.
        k, v: [S, Hkv, D], a row a position; or the rows of all pages.
        bounds: of documents, from 0 to the number of positions; none sees another.
        pages: int32, which ``page`` rows each of k and v are the sequence's, in order. None: the first ones.
        page: rows of a page.
        out: where the result goes, [T, Hq, D] without gaps; None for a new tensor.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    (T, H, D), (S, G, _) = q.shape, k.shape
    out = q.new_empty(q.shape) if out is None else out
    documents = torch.tensor(bounds, dtype=torch.int64, device="cpu")
    used = 0 if pages is None else len(pages)
    call("leyden_causal_attention", q.dtype, q, k, v, pages, documents, T, H, D, S, G, page, used, len(bounds), out)
    return out


def causal_pays(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether it can attend in heads of ``head_dim``, and is faster than blocks with a matrix library's products."""
    return head_dim % LANES == 0 and products_pay(dtype)


def products_pay(dtype: torch.dtype) -> bool:
    """Whether C++ has products of this dtype, and they are faster than a matrix library's in float32."""
    return bool(library().leyden_attention_pays(ctypes.c_int64(dtype == torch.bfloat16)))
