"""Sequences of completions one by one: joined to what goes through the model at once, and dealt to data ranks."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from leyden.data import Batch
from leyden.data.loader.grouped import PADDING_GROUP
from leyden.ops import IGNORE_INDEX


def share_of(sequences: Sequence[Batch], rank: int, ranks: int) -> Batch:
    """What data rank ``rank`` of ``ranks`` has of a micro-batch: a run of its sequences, as many as every other rank.

    Where they do not divide evenly, empty sequences come behind them, of which nothing is learned.
    """
    each = -(-len(sequences) // ranks)
    filled = [*sequences, *[_empty(sequences[-1])] * (each * ranks - len(sequences))]
    return joined(filled[rank * each : (rank + 1) * each])


def micro_batches_of(sequences: Sequence[Batch], at_once: int) -> list[Sequence[Batch]]:
    """Those that go through the model together, ``at_once`` at most."""
    return [sequences[first : first + at_once] for first in range(0, len(sequences), at_once)]


def joined(sequences: Sequence[Batch]) -> Batch:
    """Several as one row, one behind the other."""
    if len(sequences) == 1:
        return sequences[0]
    first, bounds, groups = sequences[0], [torch.zeros(1, dtype=torch.int32)], []
    begins = behind = 0
    for one in sequences:
        assert one.groups is not None, "completions are in groups of one"
        bounds.append(one.cu_seqlens[1:] + begins)
        groups.append(torch.where(one.groups < 0, PADDING_GROUP, one.groups + behind))
        begins, behind = begins + one.tokens.shape[1], behind + int(one.groups.max().clamp_min(-1)) + 1
    return Batch(
        tokens=torch.cat([one.tokens for one in sequences], 1),
        labels=torch.cat([one.labels for one in sequences], 1),
        cu_seqlens=torch.cat(bounds),
        per_token={name: torch.cat([one.per_token[name] for one in sequences], 1) for name in first.per_token},
        per_document={name: torch.cat([one.per_document[name] for one in sequences]) for name in first.per_document},
        groups=torch.cat(groups),
    )


def _empty(like: Batch) -> Batch:
    assert like.groups is not None, "completions are in groups of one"
    return replace(
        like,
        labels=torch.full_like(like.labels, IGNORE_INDEX),
        per_token={name: torch.zeros_like(values) for name, values in like.per_token.items()},
        per_document={name: torch.zeros_like(values) for name, values in like.per_document.items()},
        groups=torch.full_like(like.groups, PADDING_GROUP),
    )
