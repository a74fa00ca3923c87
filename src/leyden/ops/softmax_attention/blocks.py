"""Softmax attention a block of queries at a time, with matrix products in the dtype of the inputs.

PyTorch's own CPU kernel computes bfloat16 attention at a tenth of the machine's bfloat16 rate. Here a block of queries
meets all the keys that it can see in one product, from the beginning of the first document in the block; the softmax
is in float32. The backward forms the probabilities P = softmax(S) again:

    dS = P (dO V^T - rowsum(dO O)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO

Shapes: N = batch x key heads, G query heads share a key head, R queries in a block, W keys that it can see.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.native import call

_ROWS = 128
_SCORES_BYTES = 16 << 20
"""Scores of one block, in the dtype of the queries."""


@dataclass(frozen=True)
class _Block:
    """Queries ``rows`` and the keys ``keys`` that they may see.

    Attributes:
        rows: of the T queries.
        keys: of the S keys; from the first query's first to the last query's own, rounded outwards so that few widths
            occur, since a matrix library prepares a kernel for every new shape.
        seen: [2, R] int32, the first key of the block that each query sees, and the one behind its last.
    """

    rows: slice
    keys: slice
    seen: torch.Tensor

    @functools.cached_property
    def hidden(self) -> torch.Tensor:
        """[R, width] bool, of the last ``width`` keys of the block: those that a query may not see."""
        first, end = self.seen[:, :, None]
        num_keys = self.keys.stop - self.keys.start
        # All see the keys that the first query sees, unless a document begins or has ended before them.
        width = num_keys if int(first[-1]) > 0 else num_keys - int(end[0])
        key = torch.arange(num_keys - width, num_keys)
        return (key >= end) | (key < first)


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
        out = torch.empty_like(grouped)
        blocks = list(_blocks(grouped, keys.shape[2], bounds, window))
        for n, block in itertools.product(range(len(grouped)), blocks):
            p = _probabilities(grouped[n], keys[n, 0], block, native).to(q.dtype)
            _put(out[n], block.rows, torch.mm(p, values[n, 0, block.keys]))
        ctx.save_for_backward(q, k, v, out)
        ctx.blocks, ctx.native = blocks, native
        return _by_position(out, q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        blocks: list[_Block] = ctx.blocks
        native: bool = ctx.native
        heads = k.shape[2]
        grouped, keys, values = _by_key_head(q, heads), _by_key_head(k, heads), _by_key_head(v, heads)
        dout = _by_key_head(grads[0], heads)
        wide = torch.promote_types(q.dtype, torch.float32)
        delta = (dout.to(wide) * out).sum(-1, keepdim=True)
        dq = torch.empty_like(grouped)
        dk, dv = (torch.zeros(keys.shape, dtype=wide) for _ in range(2))
        for n, block in itertools.product(range(len(grouped)), blocks):
            rows, seen = block.rows, block.keys
            p = _probabilities(grouped[n], keys[n, 0], block, native)
            dout_rows = _take(dout[n], rows)
            dv[n, 0, seen] += torch.mm(p.to(q.dtype).t(), dout_rows)
            dp = torch.mm(dout_rows, values[n, 0, seen].t())
            ds = _score_gradients(dp, p, _take(delta[n], rows), q.shape[-1] ** -0.5, native)
            _put(dq[n], rows, torch.mm(ds, keys[n, 0, seen]))
            dk[n, 0, seen] += torch.mm(ds.t(), _take(grouped[n], rows))
        return _by_position(dq, q), _by_position(dk.to(k.dtype), k), _by_position(dv.to(v.dtype), v), None, None, None


def _by_key_head(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, T, H, D] to [N, G, T, D], contiguous, so that a block of positions is a few long runs of memory."""
    B, T, H, D = x.shape
    return x.transpose(1, 2).reshape(B * key_heads, H // key_heads, T, D).contiguous()


def _by_position(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N, G, T, D] to [B, T, H, D]."""
    B, T, H, D = like.shape
    return x.view(B, H, T, D).transpose(1, 2)


def _take(x: torch.Tensor, rows: slice) -> torch.Tensor:
    """[G, T, D] to [G R, D], contiguous also where R is 1 and a view would do."""
    return x[:, rows].flatten(0, 1).contiguous()


def _put(x: torch.Tensor, rows: slice, block: torch.Tensor) -> None:
    """Write [G R, D] into the rows of [G, T, D]."""
    target = x[:, rows]
    target.copy_(block.view(target.shape))


def _probabilities(q: torch.Tensor, k: torch.Tensor, block: _Block, native: bool) -> torch.Tensor:
    """[G R, W], zero where a query may not look; in float32 or wider, or natively in the dtype of q."""
    scores, scale = torch.mm(_take(q, block.rows), k[block.keys].t()), q.shape[-1] ** -0.5
    num_rows = block.seen.shape[1]
    if native:
        call("leyden_softmax", q.dtype, scores, block.seen, scale, len(scores), num_rows, scores.shape[1])
        return scores
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)).mul_(scale)
    by_row = scores.view(-1, num_rows, scores.shape[-1])
    by_row[..., by_row.shape[-1] - block.hidden.shape[1] :].masked_fill_(block.hidden, -torch.inf)  # of none, none
    return torch.softmax(scores, dim=-1, out=scores)


def _score_gradients(
    dp: torch.Tensor, p: torch.Tensor, delta: torch.Tensor, scale: float, native: bool
) -> torch.Tensor:
    """``p (dp - delta) scale`` [G R, W] in the dtype of dp; delta is [G R, 1]. dp is overwritten."""
    if native:
        call("leyden_softmax_backward", dp.dtype, dp, p, delta, scale, *dp.shape)
        return dp
    return dp.to(p.dtype).sub_(delta).mul_(p).mul_(scale).to(dp.dtype)


def _blocks(q: torch.Tensor, num_keys: int, bounds: list[int] | None, window: int | None) -> Iterator[_Block]:
    """Cut the queries, which are the last of ``num_keys`` positions, into blocks."""
    _, G, T, _ = q.shape
    offset = num_keys - T
    starts = torch.zeros(T, dtype=torch.int64)
    if bounds is not None:
        lengths = torch.tensor(bounds).diff()
        starts = torch.tensor(bounds[:-1]).repeat_interleave(lengths)
    if window is not None:
        starts = torch.maximum(starts, torch.arange(offset, num_keys) - (window - 1))
    first = 0
    while first < T:
        begin = int(starts[first]) // _ROWS * _ROWS
        rows, widest = _ROWS, _SCORES_BYTES // q.element_size() // G
        while rows > 16 and rows * (offset + first + _ROWS - begin) > widest:
            rows //= 2
        last = min(first + rows, T)
        end = offset + last
        grain = _ROWS
        while grain * 32 < end - begin:
            grain *= 2
        stop = min(begin - (begin - end) // grain * grain, num_keys)
        seen = torch.stack([starts[first:last], torch.arange(offset + first, end) + 1]) - begin
        yield _Block(slice(first, last), slice(begin, stop), seen.to(torch.int32))
        first = last
