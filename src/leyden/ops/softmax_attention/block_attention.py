"""Softmax attention a block of queries at a time, with a backward of its own.

PyTorch's own CPU kernel computes bfloat16 attention at a tenth of the machine's bfloat16 rate. Here a block of queries
meets all the keys that it can see in one product, from the beginning of the first document in the block. Scores, the
softmax and the gradients of the scores are float32; P and dS are rounded for the products that follow. The backward
forms the probabilities P = softmax(S) again:

    dS = P (dO V^T - rowsum(dO O)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO

Shapes as in ``blocks.py``.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from leyden.ops.finite import all_finite
from leyden.ops.softmax_attention.blocks import Block, cut_blocks
from leyden.ops.softmax_attention.scores import scores_of, take


class BlockAttention(torch.autograd.Function):
    """See :func:`leyden.ops.softmax_attention`; arguments q [B, T, Hq, D], k and v [B, S, Hkv, D], bounds, window.

    ``native`` says who computes the softmax between the products: C++ or PyTorch.
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
    ) -> torch.Tensor:
        heads = k.shape[2]
        grouped, keys, values = _by_key_head(q, heads), _by_key_head(k, heads), _by_key_head(v, heads)
        scores = scores_of(grouped, keys, native=native)
        out = torch.empty_like(grouped)

        def attend(blocks: list[Block]) -> tuple[torch.Tensor, ...]:
            for n, block in itertools.product(range(len(grouped)), blocks):
                _put(out[n], block.rows, torch.mm(scores.probabilities(n, block), values[n, 0, block.keys]))
            return (out,)

        plan = functools.partial(cut_blocks, grouped, keys.shape[2], bounds, window)
        _apart_if_not_finite(plan, attend, packed=bounds is not None)
        ctx.save_for_backward(q, k, v, out)
        ctx.plan, ctx.packed, ctx.native = plan, bounds is not None, native
        return _by_position(out, q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        heads = k.shape[2]
        grouped, keys, values = _by_key_head(q, heads), _by_key_head(k, heads), _by_key_head(v, heads)
        dout = _by_key_head(grads[0], heads)
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = scores_of(grouped, keys, values, dout, native=ctx.native)
        delta = (dout.to(wide) * out).sum(-1, keepdim=True)
        dq = torch.empty_like(grouped)
        dk, dv = (torch.empty_like(keys, dtype=wide) for _ in range(2))

        def differentiate(blocks: list[Block]) -> tuple[torch.Tensor, ...]:
            for total in (dk, dv):
                total.zero_()
            for n, block in itertools.product(range(len(grouped)), blocks):
                rows, seen = block.rows, block.keys
                p, ds = scores.gradients(n, block, take(delta[n], rows))
                dv[n, 0, seen] += torch.mm(p.t(), take(dout[n], rows))
                _put(dq[n], rows, torch.mm(ds, keys[n, 0, seen]))
                dk[n, 0, seen] += torch.mm(ds.t(), take(grouped[n], rows))
            return dq, dk, dv

        _apart_if_not_finite(ctx.plan, differentiate, packed=ctx.packed)
        return _by_position(dq, q), _by_position(dk.to(k.dtype), k), _by_position(dv.to(v.dtype), v), None, None, None


def _apart_if_not_finite(
    plan: Callable[..., Iterator[Block]], work: Callable[[list[Block]], tuple[torch.Tensor, ...]], *, packed: bool
) -> None:
    """Do the work by blocks that documents share; if a NaN or infinity comes of it, again by blocks of one document.

    In a shared block what a query may not see is multiplied by zero, which leaves a NaN a NaN.
    """
    results = work(list(plan()))
    if packed and not all_finite(*results):
        work(list(plan(apart=True)))


def _by_key_head(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, T, H, D] to [N, G, T, D], contiguous, so that a block of positions is a few long runs of memory."""
    B, T, H, D = x.shape
    return x.transpose(1, 2).reshape(B * key_heads, H // key_heads, T, D).contiguous()


def _by_position(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N, G, T, D] to [B, T, H, D]."""
    B, T, H, D = like.shape
    return x.view(B, H, T, D).transpose(1, 2)


def _put(x: torch.Tensor, rows: slice, block: torch.Tensor) -> None:
    """Write [G R, D] into the rows of [G, T, D]."""
    target = x[:, rows]
    target.copy_(block.view(target.shape))
