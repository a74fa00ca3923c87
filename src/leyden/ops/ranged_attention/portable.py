"""Attention over ranges of keys in plain PyTorch, a block of queries at a time.

A block meets the keys from the first that one of its queries sees to the last, in one matrix product a key head.
Scores, the softmax and the gradients of the scores are float32; what follows is multiplied in the dtype of the inputs
(float16 in float32, where it cannot overflow). Blocks that see nothing cost nothing.

Shapes: N key heads, G query heads share one, R queries in a block, W keys that it meets.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from leyden.ops.choices import RANGED_SCORES
from leyden.ops.finite import all_finite

_ROWS = 128
_SCORES_BYTES = RANGED_SCORES.here


@dataclass(frozen=True)
class _Block:
    """A block.

    Attributes:
        rows: of the T queries.
        keys: of the S keys, those that the queries meet, rounded outwards so that few widths occur, since a matrix
            library prepares a kernel for every new shape.
        hidden: [R, width] bool, which of the last ``width`` of the keys each query may not see.
    """

    rows: slice
    keys: slice
    hidden: torch.Tensor

    @classmethod
    def of(
        cls, rows: slice, first: torch.Tensor, last: torch.Tensor, num_keys: int, device: torch.device, *, exact: bool
    ) -> "_Block":
        """From what the queries see, which is something; ``exact`` rounds nothing."""
        low, high = _extent(first, last)
        if not exact:
            low, grain = low // _ROWS * _ROWS, _ROWS
            while grain * 32 < high - low:
                grain *= 2
            high = min(low - (low - high) // grain * grain, num_keys)
        # Where all see from the first key on, all see up to the least of the last.
        key = torch.arange(low if int(first.max()) > low else max(low, int(last.min())), high, device="cpu")
        return cls(rows, slice(low, high), ((key < first[:, None]) | (key >= last[:, None])).to(device))


def ranged_attention_portable(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention`."""
    heads, wide = k.shape[1], torch.promote_types(q.dtype, torch.float32)
    grouped, keys, values = (_by_key_head(x, heads) for x in (q, k, v))
    out = torch.zeros(grouped.shape, dtype=wide, device=q.device)
    lse = torch.full_like(out[..., :1], -torch.inf)
    wide_q, wide_k = grouped.to(wide), keys.to(wide)

    def attend(blocks: Iterator[_Block]) -> tuple[torch.Tensor, ...]:
        for block in blocks:
            for n in range(heads):
                scores = _scores(wide_q[n], wide_k[n, 0], block)
                total = torch.logsumexp(scores, dim=-1, keepdim=True)
                p = scores.sub_(_finite(total)).exp_()
                _put(out[n], block.rows, torch.mm(p.to(values.dtype), values[n, 0, block.keys]))
                _put(lse[n], block.rows, total)
        return (out,)

    _apart_if_not_finite(functools.partial(_blocks, first, last, len(k), grouped.shape[1], q.device), attend)
    return _by_position(out), _by_position(lse).squeeze(-1)


def ranged_attention_backward_portable(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention_backward`."""
    heads, wide, scale = k.shape[1], torch.promote_types(q.dtype, torch.float32), q.shape[2] ** -0.5
    grouped, keys, values, douts = (_by_key_head(x, heads) for x in (q, k, v, dout))
    lses, deltas = (_by_key_head(x[..., None], heads) for x in (lse, delta))
    dq, dk, dv = (torch.empty(x.shape, dtype=wide, device=q.device) for x in (grouped, keys, values))
    wide_q, wide_k, wide_v = grouped.to(wide), keys.to(wide), values.to(wide)

    def differentiate(blocks: Iterator[_Block]) -> tuple[torch.Tensor, ...]:
        for total in (dq, dk, dv):
            total.zero_()
        for block in blocks:
            rows, seen = block.rows, block.keys
            for n in range(heads):
                p = _scores(wide_q[n], wide_k[n, 0], block).sub_(_finite(_take(lses[n], rows))).exp_()
                dout_rows = _take(douts[n], rows)
                dv[n, 0, seen] += torch.mm(p.to(keys.dtype).t(), dout_rows)
                dp = torch.mm(dout_rows.to(wide), wide_v[n, 0, seen].t())
                ds = dp.sub_(_take(deltas[n], rows)).mul_(p).mul_(scale).to(keys.dtype)
                _put(dq[n], rows, torch.mm(ds, keys[n, 0, seen]))
                dk[n, 0, seen] += torch.mm(ds.t(), _take(grouped[n], rows))
        return dq, dk, dv

    _apart_if_not_finite(functools.partial(_blocks, first, last, len(k), grouped.shape[1], q.device), differentiate)
    return _by_position(dq), _by_position(dk), _by_position(dv)


def _apart_if_not_finite(
    plan: Callable[..., Iterator[_Block]], work: Callable[[Iterator[_Block]], tuple[torch.Tensor, ...]]
) -> None:
    """Do the work, and if a NaN or infinity comes of it, again by blocks whose queries begin at the same key.

    In a shared block what a query may not see is multiplied by zero, which leaves a NaN of another document a NaN.
    """
    results = work(plan())
    if not all_finite(*results):
        work(plan(apart=True))


def _by_key_head(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[T, H, D] to [N, G, T, D], contiguous, in the dtype of products."""
    x = x.float() if x.dtype == torch.float16 else x
    return x.unflatten(1, (key_heads, -1)).permute(1, 2, 0, 3).contiguous()


def _by_position(x: torch.Tensor) -> torch.Tensor:
    """[N, G, T, D] to [T, H, D]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


def _take(x: torch.Tensor, rows: slice) -> torch.Tensor:
    """[G, T, D] to [G R, D]."""
    return x[:, rows].flatten(0, 1)


def _put(x: torch.Tensor, rows: slice, block: torch.Tensor) -> None:
    """Write [G R, D] into the rows of [G, T, D]."""
    target = x[:, rows]
    target.copy_(block.view(target.shape))


def _scores(q: torch.Tensor, k: torch.Tensor, block: _Block) -> torch.Tensor:
    """[G R, W], minus infinity where a query may not look."""
    scores = torch.mm(_take(q, block.rows), k[block.keys].t()).mul_(q.shape[-1] ** -0.5)
    num_rows, width = block.hidden.shape
    scores.view(-1, num_rows, scores.shape[1])[..., scores.shape[1] - width :].masked_fill_(block.hidden, -torch.inf)
    return scores


def _finite(lse: torch.Tensor) -> torch.Tensor:
    """Of a query that sees nothing, whose scores are all minus infinity, anything finite."""
    return lse.masked_fill(lse == -torch.inf, 0)


def _blocks(
    first: torch.Tensor, last: torch.Tensor, num_keys: int, group: int, device: torch.device, *, apart: bool = False
) -> Iterator[_Block]:
    """Cut the queries into blocks whose scores are few enough, leaving out what sees nothing.

    Where ``apart``, the queries of a block begin at the same key, and the block has no keys but those they see.
    """
    first, last = first.cpu(), last.cpu()
    begin = 0
    while begin < len(first):
        rows = _ROWS
        low, high = _extent(first[begin : begin + rows], last[begin : begin + rows])
        while rows > 16 and rows * group * (high - low) * 4 > _SCORES_BYTES:
            rows //= 2
            low, high = _extent(first[begin : begin + rows], last[begin : begin + rows])
        if apart:
            alike = first[begin : begin + rows] == first[begin]
            rows = len(alike) if bool(alike.all()) else int(alike.int().argmin())
            low, high = _extent(first[begin : begin + rows], last[begin : begin + rows])
        mine = slice(begin, begin + rows)
        begin += rows
        if high > low:
            yield _Block.of(mine, first[mine], last[mine], num_keys, device, exact=apart)


def _extent(first: torch.Tensor, last: torch.Tensor) -> tuple[int, int]:
    """From the first key that one of the queries sees, to the one behind the last; nothing: 0 and 0."""
    seeing = first < last
    return (int(first[seeing].min()), int(last[seeing].max())) if seeing.any() else (0, 0)
