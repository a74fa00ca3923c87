"""Attention a block of queries at a time, whatever says which keys a query sees.

Shapes: N = batch x key heads, G query heads share a key head, R queries in a block.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from leyden.ops.finite import all_finite

_ROWS = 128


@dataclass(frozen=True)
class Block:
    """A block.

    Attributes:
        rows: of the T queries.
        keys: of the S keys, those that the queries meet, rounded outwards so that few widths occur, since a matrix
            library prepares a kernel for every new shape.
        seen: [2, R] int32 on the CPU, the first key of the block that each query sees, and the one behind its last.
    """

    rows: slice
    keys: slice
    seen: torch.Tensor

    @functools.cached_property
    def hidden(self) -> torch.Tensor:
        """[R, width] bool, of the last ``width`` keys of the block: those that a query may not see."""
        first, end = self.seen[:, :, None]
        # Where all see from the first key on, all see up to the least of the ends.
        clear = 0 if int(first.max()) > 0 else max(0, int(end.min()))
        key = torch.arange(clear, self.keys.stop - self.keys.start, device="cpu")
        return (key >= end) | (key < first)


def cut_blocks(
    first: torch.Tensor,
    last: torch.Tensor,
    num_keys: int,
    most_scores: int,
    documents: torch.Tensor | None = None,
) -> Iterator[Block]:
    """Cut the queries into blocks whose scores are few enough, leaving out what sees nothing.

    Args:
        first, last: [T] on the CPU; query t sees the keys ``first[t]`` to ``last[t] - 1``.
        num_keys: S.
        most_scores: of a block and one of its heads; a block of 16 queries may have more.
        documents: [T] on the CPU. Where given, the queries of a block have the same one, and the block has no keys but
            those that they see.
    """
    seeing = first < last
    lowest, highest = first.where(seeing, num_keys), last.where(seeing, 0)
    begin = 0
    while begin < len(first):
        rows, least = slice(begin, begin + _ROWS), begin + 16
        low, high = int(lowest[rows].min()), int(highest[rows].max())
        while rows.stop > least and (rows.stop - begin) * (high - low) > most_scores:
            rows = slice(begin, begin + (rows.stop - begin) // 2)
            low, high = int(lowest[rows].min()), int(highest[rows].max())
        if documents is not None:
            alike = documents[rows] == documents[begin]
            rows = slice(begin, begin + (len(alike) if bool(alike.all()) else int(alike.int().argmin())))
            low, high = int(lowest[rows].min()), int(highest[rows].max())
        rows = slice(begin, min(rows.stop, len(first)))
        begin = rows.stop
        if high > low:
            keys = _rounded(low, high, num_keys) if documents is None else slice(low, high)
            yield Block(rows, keys, torch.stack([first[rows], last[rows]]).sub_(keys.start).to(torch.int32))


def _rounded(first: int, stop: int, num_keys: int) -> slice:
    first, grain = first // _ROWS * _ROWS, _ROWS
    while grain * 32 < stop - first:
        grain *= 2
    return slice(first, min(first - (first - stop) // grain * grain, num_keys))


def apart_if_not_finite(
    plan: Callable[..., Iterator[Block]],
    documents: torch.Tensor | None,
    work: Callable[[Iterator[Block]], tuple[torch.Tensor, ...]],
) -> None:
    """Do the work by blocks that documents share; if a NaN or infinity comes of it, again by blocks of one document.

    In a shared block what a query may not see is multiplied by zero, which leaves a NaN of another document a NaN.

    Args:
        plan: :func:`cut_blocks` of all that it needs but the documents.
        documents: as of :func:`cut_blocks`; None where there is one.
        work: fills tensors block by block, from their beginning, and returns them.
    """
    results = work(plan())
    if documents is not None and not all_finite(*results):
        work(plan(documents=documents))


def by_key_head(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[B, T, H, D] to [N, G, T, D], contiguous, so that a block of positions is a few long runs of memory."""
    B, T, H, D = x.shape
    return x.transpose(1, 2).reshape(B * key_heads, H // key_heads, T, D).contiguous()


def by_position(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[N, G, T, D] to [B, T, H, D] of so many heads."""
    N, G, T, D = x.shape
    return x.view(N * G // heads, heads, T, D).transpose(1, 2)


def take(x: torch.Tensor, rows: slice) -> torch.Tensor:
    """[G, T, D] to [G R, D], contiguous also where R is 1 and a view would do."""
    return x[:, rows].flatten(0, 1).contiguous()


def put(x: torch.Tensor, rows: slice, block: torch.Tensor) -> None:
    """Write [G R, D] into the rows of [G, T, D]."""
    target = x[:, rows]
    target.copy_(block.view(target.shape))
