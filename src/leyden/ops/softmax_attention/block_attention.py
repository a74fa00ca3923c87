"""Softmax attention a block of queries at a time, with a backward of its own.

PyTorch's own CPU kernel computes bfloat16 attention at a tenth of the machine's bfloat16 rate. Here a block of queries
meets all the keys that it can see in one product, from the beginning of the first document in the block. Scores, the
softmax and the gradients of the scores are float32; P and dS are rounded for the products that follow. The backward
forms the probabilities P = softmax(S) again:

    dP = dO V^T,   dS = P (dP - rowsum(P dP)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO

rowsum(P dP) is rowsum(dO O), but of P and dP as they are here and not of O as it was rounded: where one probability is
close to 1, dS is the difference of two nearly equal numbers.

Shapes as in ``attention_blocks.py``.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from leyden.ops.attention_blocks import Block, apart_if_not_finite, by_key_head, by_position, cut_blocks, put, take
from leyden.ops.choices import SOFTMAX_SCORES
from leyden.ops.softmax_attention.causal import causal_attention, causal_pays
from leyden.ops.softmax_attention.scores import scores_of


class BlockAttention(torch.autograd.Function):
    """See :func:`leyden.ops.softmax_attention`; arguments q [B, T, Hq, D], k and v [B, S, Hkv, D], bounds, window,
    native, softcap.

    ``native`` says who computes the softmax between the products: C++ or PyTorch. Without a window, C++ may compute the
    whole of the forward (``causal.cpp``). It caps no scores: with a ``softcap``, ``native`` is False.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bounds: list[int] | None,
        window: int | None,
        native: bool,
        softcap: float | None,
    ) -> torch.Tensor:
        begins, first, last = _ranges(q.shape[1], k.shape[1], bounds, window)
        heads = k.shape[2]
        plan = functools.partial(cut_blocks, first, last, k.shape[1], SOFTMAX_SCORES.here // 4 // (q.shape[2] // heads))
        ctx.plan, ctx.begins, ctx.native, ctx.softcap = plan, begins, native, softcap
        ctx.save_for_backward(q, k, v)
        if native and window is None and causal_pays(q.shape[3], q.dtype):
            documents = [0, k.shape[1]] if bounds is None else bounds
            out = q.new_empty(q.shape)
            for row, given in zip(out, zip(q, k, v, strict=True), strict=True):
                causal_attention(*given, documents, out=row)
            return out
        grouped, keys, values = (by_key_head(x, heads) for x in (q, k, v))
        scores = scores_of(grouped, keys, native=native, softcap=softcap)
        out = torch.empty_like(grouped)

        def attend(blocks: Iterator[Block]) -> tuple[torch.Tensor, ...]:
            for n, block in itertools.product(range(len(grouped)), blocks):
                put(out[n], block.rows, torch.mm(scores.probabilities(n, block), values[n, 0, block.keys]))
            return (out,)

        apart_if_not_finite(plan, begins, attend)
        return by_position(out, q.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        heads = k.shape[2]
        grouped, keys, values = (by_key_head(x, heads) for x in (q, k, v))
        dout = by_key_head(grads[0], heads)
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = scores_of(grouped, keys, values, dout, native=ctx.native, softcap=ctx.softcap)
        dq = torch.empty_like(grouped)
        dk, dv = (torch.empty_like(keys, dtype=wide) for _ in range(2))

        def differentiate(blocks: Iterator[Block]) -> tuple[torch.Tensor, ...]:
            for total in (dk, dv):
                total.zero_()
            for n, block in itertools.product(range(len(grouped)), blocks):
                rows, seen = block.rows, block.keys
                p, ds = scores.gradients(n, block)
                dv[n, 0, seen] += torch.mm(p.t(), take(dout[n], rows))
                put(dq[n], rows, torch.mm(ds, keys[n, 0, seen]))
                dk[n, 0, seen] += torch.mm(ds.t(), take(grouped[n], rows))
            return dq, dk, dv

        apart_if_not_finite(ctx.plan, ctx.begins, differentiate)
        dkeys, dvalues = (by_position(x.to(k.dtype), heads) for x in (dk, dv))
        return by_position(dq, q.shape[2]), dkeys, dvalues, None, None, None, None


def _ranges(
    num_queries: int, num_keys: int, bounds: list[int] | None, window: int | None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Where the document of each query begins (None where there is one), its first key, and the one behind its last.

    The queries are the last of ``num_keys`` positions; each sees its document's keys up to its own, and of these the
    last ``window``.
    """
    begins, first = None, torch.zeros(num_queries, dtype=torch.int64, device="cpu")
    if bounds is not None:
        lengths = torch.tensor(bounds, device="cpu").diff()
        begins = first = torch.tensor(bounds[:-1], device="cpu").repeat_interleave(lengths)
    last = torch.arange(num_keys - num_queries + 1, num_keys + 1, device="cpu")
    return begins, first if window is None else torch.maximum(first, last - window), last
