"""Which tokens of a packed row each context rank holds in softmax layers, and what its queries see of another's keys.

In causal attention a token's work is the keys that it sees. ``contiguous`` is the layout of the lightning layers, in
which the rank with the ends of the documents has most of the work. ``balanced`` deals blocks of the row so that ranks
have (nearly) equal numbers of tokens and (nearly) equal work; of a row of one document it makes the zigzag, in which
rank r of n has blocks r and 2n - 1 - r.

All of this follows from bounds on the host. Ranks hold their tokens in the order of their positions, so that each query
sees one range of any rank's keys.
"""

import functools
import heapq
from dataclasses import dataclass

import torch

from leyden.model import RowPart

_BLOCKS_PER_RANK = (2, 4, 8, 16)
_EVEN = 1.02
"""The fewest blocks a rank are taken with which the most work of a rank is at most so many times the mean."""


@dataclass(frozen=True)
class Layout:
    """The tokens of every rank.

    Attributes:
        positions: a tensor [T_r] int64 a rank, ascending; together every position of the row once. On the CPU.
        starts: [T] int64, where the document of each position begins.
    """

    positions: tuple[torch.Tensor, ...]
    starts: torch.Tensor

    @property
    def sizes(self) -> list[int]:
        """How many tokens each rank has."""
        return [len(positions) for positions in self.positions]

    def seen(self, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rank ``keys``, the first key that each query of rank ``queries`` sees, and the one behind the last.

        Returns:
            Two tensors [T_queries] int32 on the CPU, neither of which falls from one query to the next.
        """
        query, key = self.positions[queries], self.positions[keys]
        first = torch.searchsorted(key, self.starts[query])
        last = torch.searchsorted(key, query, right=True)
        return first.to(torch.int32), torch.maximum(first, last).to(torch.int32)

    def work(self) -> list[list[int]]:
        """How many pairs of a query and a key that it sees, by the rank of the query and the rank of the key."""
        ranks = range(len(self.positions))
        seen = [[self.seen(query, key) for key in ranks] for query in ranks]
        return [[int((last - first).sum()) for first, last in row] for row in seen]


@functools.lru_cache(maxsize=16)
def contiguous(bounds: tuple[int, ...], documents: tuple[int, ...]) -> Layout:
    """Every rank has its part of the row.

    Args:
        bounds: [ranks + 1], of the parts, as :attr:`leyden.model.RowPart.bounds`.
        documents: [N + 1], of the row's documents.
    """
    positions = torch.arange(bounds[-1]).split([stop - start for start, stop in zip(bounds, bounds[1:], strict=False)])
    return Layout(positions, _starts(documents))


@functools.lru_cache(maxsize=16)
def balanced(ranks: int, documents: tuple[int, ...]) -> Layout:
    """Blocks of the row are dealt to ``ranks`` so that all have as many blocks and about as much work."""
    starts = _starts(documents)
    before = torch.cat([starts.new_zeros(1), (torch.arange(len(starts)) - starts + 1).cumsum(0)])
    best: tuple[float, tuple[torch.Tensor, ...]] | None = None
    for per_rank in _BLOCKS_PER_RANK:
        bounds = torch.arange(ranks * per_rank + 1) * len(starts) // (ranks * per_rank)
        hands = _deal(before[bounds].diff().tolist(), ranks, per_rank)
        work = [sum(int(before[bounds[block + 1]] - before[bounds[block]]) for block in hand) for hand in hands]
        uneven = max(work) * ranks / max(1, sum(work))
        if best is None or uneven < best[0]:
            best = (
                uneven,
                tuple(
                    torch.cat([torch.arange(int(bounds[block]), int(bounds[block + 1])) for block in hand])
                    for hand in hands
                ),
            )
        if uneven <= _EVEN:
            break
    assert best is not None
    return Layout(best[1], starts)


def _deal(costs: list[int], ranks: int, per_rank: int) -> list[list[int]]:
    """Blocks to ranks, the costliest first, each to the rank with the least so far that has room for more; sorted."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0, rank) for rank in range(ranks)]
    for block in sorted(range(len(costs)), key=lambda block: (-costs[block], -block)):
        cost, rank = heapq.heappop(least)
        hands[rank].append(block)
        if len(hands[rank]) < per_rank:
            heapq.heappush(least, (cost + costs[block], rank))
    return [sorted(hand) for hand in hands]


def _starts(documents: tuple[int, ...]) -> torch.Tensor:
    """[T], where the document of each position begins."""
    bounds = torch.tensor(documents)
    return bounds[:-1].repeat_interleave(bounds.diff())


@dataclass(frozen=True)
class Step:
    """What one rank's queries see of one rank's keys: [T'] int32 each, as in :func:`leyden.ops.ranged_attention`."""

    first: torch.Tensor
    last: torch.Tensor


@functools.lru_cache(maxsize=16)
def steps(part: RowPart, even: bool, device: torch.device) -> tuple[Layout, tuple[Step | None, ...]]:
    """The layout of a row, and what this rank's queries see of every rank's keys; None: nothing.

    Args:
        part: of the row.
        even: the layout is ``balanced``, else ``contiguous``.
        device: where attention is computed.
    """
    ranks = len(part.bounds) - 1
    layout = balanced(ranks, part.cu_seqlens) if even else contiguous(part.bounds, part.cu_seqlens)
    seen = [layout.seen(part.rank, source) for source in range(ranks)]
    return layout, tuple(
        Step(first.to(device), last.to(device)) if bool((first < last).any()) else None for first, last in seen
    )
