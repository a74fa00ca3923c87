"""Softmax attention a block of queries at a time: which queries, and the keys that they may see.

Shapes: N = batch x key heads, G query heads share a key head, R queries in a block, W keys that it can see.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from leyden.ops.choices import SOFTMAX_SCORES

_ROWS = 128
_SCORES_BYTES = SOFTMAX_SCORES.here


@dataclass(frozen=True)
class Block:
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
        key = torch.arange(num_keys - width, num_keys, device="cpu")
        return (key >= end) | (key < first)


def cut_blocks(
    q: torch.Tensor, num_keys: int, bounds: list[int] | None, window: int | None, *, apart: bool = False
) -> Iterator[Block]:
    """Cut the queries, which are the last of ``num_keys`` positions, into blocks.

    Args:
        q: [N, G, T, D].
        num_keys: S.
        bounds: of packed documents.
        window: how many keys a query sees at most.
        apart: a block has queries and keys of one document alone.
    """
    _, G, T, _ = q.shape
    offset = num_keys - T
    starts = torch.zeros(T, dtype=torch.int64, device="cpu")
    if bounds is not None:
        lengths = torch.tensor(bounds, device="cpu").diff()
        starts = torch.tensor(bounds[:-1], device="cpu").repeat_interleave(lengths)
    if window is not None:
        starts = torch.maximum(starts, torch.arange(offset, num_keys, device="cpu") - (window - 1))
    ends = list(bounds) if apart and bounds is not None else [T]
    first = 0
    while first < T:
        begin = int(starts[first]) // (1 if apart else _ROWS) * (1 if apart else _ROWS)
        rows, widest = _ROWS, _SCORES_BYTES // 4 // G
        while rows > 16 and rows * (offset + first + _ROWS - begin) > widest:
            rows //= 2
        last = min(first + rows, next(end for end in ends if end > first))
        end = offset + last
        grain = _ROWS
        while grain * 32 < end - begin:
            grain *= 2
        stop = end if apart else min(begin - (begin - end) // grain * grain, num_keys)
        behind = torch.arange(offset + first + 1, end + 1, device="cpu")
        seen = torch.stack([starts[first:last], behind]) - begin
        yield Block(slice(first, last), slice(begin, stop), seen.to(torch.int32))
        first = last
