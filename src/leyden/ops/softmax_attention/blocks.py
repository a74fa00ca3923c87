"""Softmax attention a block of queries at a time, with matrix products in the dtype of the inputs.

PyTorch's own CPU kernel computes bfloat16 attention at a tenth of the machine's bfloat16 rate. Here a block of queries
meets all the keys that it can see in one product, from the beginning of the first document in the block; the softmax
is in float32. The backward forms the probabilities P = softmax(S) again:

    dS = P (dO V^T - rowsum(dO O)),   dQ = dS K,   dK = dS^T Q,   dV = P^T dO

Shapes: N = batch x key heads, G query heads share a key head, R queries in a block, W keys that it can see.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_ROWS = 128
_SCORES = 1 << 21
"""Scores of one block: 8 MB in float32."""


@dataclass(frozen=True)
class _Block:
    """Queries ``rows`` and the keys ``keys`` they may see; ``hidden`` marks those that a query may not.

    Attributes:
        rows: of the T queries.
        keys: of the S keys; begins at a document's first key, rounded down to a multiple of the block.
        hidden: [R, width] bool, of the last ``width`` keys.
    """

    rows: slice
    keys: slice
    hidden: torch.Tensor


class BlockAttention(torch.autograd.Function):
    """See :func:`leyden.ops.softmax_attention`; arguments q [B, T, Hq, D], k and v [B, S, Hkv, D], bounds."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int] | None
    ) -> torch.Tensor:
        heads = k.shape[2]
        grouped, keys, values = _by_key_head(q, heads), _by_key_head(k, heads), _by_key_head(v, heads)
        out = torch.empty_like(grouped)
        blocks = list(_blocks(grouped, keys.shape[2], bounds))
        for n, block in itertools.product(range(len(grouped)), blocks):
            p = _probabilities(grouped[n], keys[n, 0], block).to(q.dtype)
            _put(out[n], block.rows, torch.mm(p, values[n, 0, block.keys]))
        ctx.save_for_backward(q, k, v, out)
        ctx.blocks = blocks
        return _by_position(out, q)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        blocks: list[_Block] = ctx.blocks
        heads = k.shape[2]
        grouped, keys, values = _by_key_head(q, heads), _by_key_head(k, heads), _by_key_head(v, heads)
        dout = _by_key_head(grads[0], heads)
        wide = torch.promote_types(q.dtype, torch.float32)
        delta = (dout.to(wide) * out).sum(-1, keepdim=True)
        dq = torch.empty_like(grouped)
        dk, dv = (torch.zeros(keys.shape, dtype=wide) for _ in range(2))
        for n, block in itertools.product(range(len(grouped)), blocks):
            rows, seen = block.rows, block.keys
            p = _probabilities(grouped[n], keys[n, 0], block)
            dout_rows = _take(dout[n], rows)
            dv[n, 0, seen] += torch.mm(p.to(q.dtype).t(), dout_rows)
            dp = torch.mm(dout_rows, values[n, 0, seen].t()).to(wide)
            ds = dp.sub_(_take(delta[n], rows)).mul_(p).mul_(q.shape[-1] ** -0.5).to(q.dtype)
            _put(dq[n], rows, torch.mm(ds, keys[n, 0, seen]))
            dk[n, 0, seen] += torch.mm(ds.t(), _take(grouped[n], rows))
        return _by_position(dq, q), _by_position(dk.to(k.dtype), k), _by_position(dv.to(v.dtype), v), None


def _by_key_head(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, T, H, D] to [N, G, T, D], contiguous, so that a block of positions is a few long runs of memory."""
    B, T, H, D = x.shape
    return x.transpose(1, 2).reshape(B * key_heads, H // key_heads, T, D).contiguous()


def _by_position(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N, G, T, D] to [B, T, H, D]."""
    B, T, H, D = like.shape
    return x.view(B, H, T, D).transpose(1, 2)


def _take(x: torch.Tensor, rows: slice) -> torch.Tensor:
    """[G, T, D] to [G R, D]."""
    return x[:, rows].flatten(0, 1)


def _put(x: torch.Tensor, rows: slice, block: torch.Tensor) -> None:
    """Write [G R, D] into the rows of [G, T, D]."""
    target = x[:, rows]
    target.copy_(block.view(target.shape))


def _probabilities(q: torch.Tensor, k: torch.Tensor, block: _Block) -> torch.Tensor:
    """[G R, W] in float32 (float64 for float64), zero where a query may not look."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.mm(_take(q, block.rows), k[block.keys].t()).to(wide).mul_(q.shape[-1] ** -0.5)
    num_rows, width = block.hidden.shape
    by_row = scores.view(-1, num_rows, scores.shape[-1])
    by_row[..., -width:].masked_fill_(block.hidden, -torch.inf)
    return torch.softmax(scores, dim=-1, out=scores)


def _blocks(q: torch.Tensor, num_keys: int, bounds: list[int] | None) -> Iterator[_Block]:
    """Cut the queries, which are the last of ``num_keys`` positions, into blocks."""
    _, G, T, _ = q.shape
    offset = num_keys - T
    starts = torch.zeros(T, dtype=torch.int64)
    if bounds is not None:
        lengths = torch.tensor(bounds).diff()
        starts = torch.tensor(bounds[:-1]).repeat_interleave(lengths)
    first = 0
    while first < T:
        begin = int(starts[first]) // _ROWS * _ROWS
        rows = max(16, min(_ROWS, _SCORES // (G * (offset + first + _ROWS - begin)) // 16 * 16))
        last = min(first + rows, T)
        end = offset + last
        # Only the block's own keys can lie ahead of a query, unless a document begins or has ended before them.
        masked_from = begin if int(starts[last - 1]) > begin else end - (last - first)
        key = torch.arange(masked_from, end)
        query = torch.arange(offset + first, end)[:, None]
        yield _Block(slice(first, last), slice(begin, end), (key > query) | (key < starts[first:last, None]))
        first = last
