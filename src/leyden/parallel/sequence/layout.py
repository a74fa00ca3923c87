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

_BLOCKS_PER_RANK = (2, 4, 8, 16, 32)
_MOST_BLOCKS = 2048
"""Of all ranks, beyond the fewest a rank: their pairs are counted on the host."""

_EVEN = 1.05
"""The fewest blocks are taken with which a ring takes at most so many times as long as if all its work were even."""


@dataclass(frozen=True)
class SequenceLayout:
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

    def seen(self, queries: int, keys: int, window: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rank ``keys``, the first key that each query of rank ``queries`` sees, and the one behind the last.

        Args:
            queries, keys: the ranks.
            window: how many keys a query sees at most; None: all of its document before it.

        Returns:
            Two tensors [T_queries] int32 on the CPU, neither of which falls from one query to the next.
        """
        query, key = self.positions[queries], self.positions[keys]
        start = self.starts[query] if window is None else torch.maximum(self.starts[query], query - (window - 1))
        first = torch.searchsorted(key, start)
        last = torch.searchsorted(key, query, right=True)
        return first.to(torch.int32), torch.maximum(first, last).to(torch.int32)

    def work(self) -> torch.Tensor:
        """[ranks, ranks] int64: pairs of a query and a key that it sees, by the query's rank and the key's."""
        ranks = range(len(self.positions))
        seen = [[self.seen(query, key) for key in ranks] for query in ranks]
        return torch.tensor([[int((last - first).sum()) for first, last in row] for row in seen])


@functools.lru_cache(maxsize=16)
def contiguous(bounds: tuple[int, ...], documents: tuple[int, ...]) -> SequenceLayout:
    """Every rank has its part of the row.

    Args:
        bounds: [ranks + 1], of the parts, as :attr:`leyden.model.RowPart.bounds`.
        documents: [N + 1], of the row's documents.
    """
    lengths = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    return SequenceLayout(torch.arange(bounds[-1]).split(lengths), _starts(documents))


@functools.lru_cache(maxsize=16)
def balanced(ranks: int, documents: tuple[int, ...]) -> SequenceLayout:
    """Blocks of the row are dealt to ``ranks``: as many to each, with about as much work, at every step of a ring."""
    starts = _starts(documents)
    least, best = float("inf"), torch.zeros_like(starts)
    for per_rank in _BLOCKS_PER_RANK:
        count = ranks * per_rank
        if count > _MOST_BLOCKS and per_rank > _BLOCKS_PER_RANK[0]:
            break
        bounds = torch.arange(count + 1) * len(starts) // count
        pairs = _pairs(bounds, starts)
        owners = _deal(pairs.sum(1).tolist(), ranks, per_rank)
        work = pairs.new_zeros(ranks, count).index_add_(0, owners, pairs)
        time = ring_time(work.new_zeros(ranks, ranks).index_add_(1, owners, work))
        if time < least:
            least, best = time, owners.repeat_interleave(bounds.diff())
        if time <= _EVEN:
            break
    return SequenceLayout(best.argsort(stable=True).split(best.bincount(minlength=ranks).tolist()), starts)


def ring_time(work: torch.Tensor) -> float:
    """How long a ring takes, in units of the mean rank's work, if nothing but work [ranks, ranks] takes time.

    At step s, rank r computes with the keys of rank r - s. It begins when it is done with the step before and both its
    neighbours have begun that one, since blocks pass between neighbours as a step begins.
    """
    ranks = torch.arange(len(work))
    begun = done = torch.zeros(len(work), dtype=torch.int64)
    for step in range(len(work)):
        begun = torch.maximum(done, torch.maximum(begun.roll(1), begun.roll(-1)))
        done = begun + work[ranks, ranks - step]
    return int(done.max()) * len(work) / max(1, int(work.sum()))


def _pairs(bounds: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """[blocks, blocks] int64: pairs of a query and a key that it sees, by the query's block and the key's.

    Query i sees the keys from ``starts[i]`` to i. Of the keys below a bound that no query of a block is below, it sees
    ``max(0, bound - starts[i])``; as starts never fall, these are sums over the block's first queries.
    """
    first, stop, bound = bounds[:-1, None], bounds[1:, None], bounds[None]
    starts_before = torch.cat([starts.new_zeros(1), starts.cumsum(0)])
    seeing = torch.searchsorted(starts, bounds)[None].clamp(first, stop)  # the block's queries, up to the last of these
    below = (seeing - first) * bound - (starts_before[seeing] - starts_before[first])
    length = stop - first
    everything = first * length + length * (length + 1) // 2 - (starts_before[stop] - starts_before[first])
    return torch.where(bound >= stop, everything, below).diff(dim=1)


def _deal(costs: list[int], ranks: int, per_rank: int) -> torch.Tensor:
    """[blocks], whose each is: the costliest first, each to the rank with the least so far that has room for more."""
    owners, room = torch.empty(len(costs), dtype=torch.int64), [per_rank] * ranks
    least = [(0, rank) for rank in range(ranks)]
    for block in sorted(range(len(costs)), key=lambda block: (-costs[block], -block)):
        cost, rank = heapq.heappop(least)
        owners[block] = rank
        room[rank] -= 1
        if room[rank]:
            heapq.heappush(least, (cost + costs[block], rank))
    return owners


def _starts(documents: tuple[int, ...]) -> torch.Tensor:
    """[T], where the document of each position begins."""
    bounds = torch.tensor(documents)
    return bounds[:-1].repeat_interleave(bounds.diff())


@dataclass(frozen=True)
class RingStep:
    """What one rank's queries see of one rank's keys: [T'] each, as in :func:`leyden.ops.ranged_attention_backward`.

    Attributes:
        first, last: int32, the first key, and the one behind the last.
        whole: bool, whether that is all that the query sees.
    """

    first: torch.Tensor
    last: torch.Tensor
    whole: torch.Tensor


@functools.lru_cache(maxsize=16)
def steps(
    part: RowPart, even: bool, device: torch.device, window: int | None = None
) -> tuple[SequenceLayout, tuple[RingStep | None, ...]]:
    """The layout of a row, and what this rank's queries see of every rank's keys; None: nothing.

    Args:
        part: of the row.
        even: the layout is ``balanced``, else ``contiguous``.
        device: where attention is computed.
        window: how many keys a query sees at most.
    """
    ranks = len(part.bounds) - 1
    layout = balanced(ranks, part.cu_seqlens) if even else contiguous(part.bounds, part.cu_seqlens)
    seen = [layout.seen(part.rank, source, window) for source in range(ranks)]
    once = torch.stack([first < last for first, last in seen]).sum(0) == 1
    return layout, tuple(
        RingStep(first.to(device), last.to(device), (once & (first < last)).to(device))
        if bool((first < last).any())
        else None
        for first, last in seen
    )
