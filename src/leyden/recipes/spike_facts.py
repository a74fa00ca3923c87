"""What is noted of the batches of a spike: the documents in them, and whether they repeat themselves."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from leyden.data.loader.packing import Batch, PackedBatchIterator
from leyden.data.loader.repeats import repeated

_USUAL_BATCHES = 8
"""Batches before those of the spike, with which they are compared."""


class BatchFacts:
    """See :data:`leyden.train.health.BatchFacts`.

    Args:
        make: the batches of the stage, of all ranks; made at the first spike.
    """

    def __init__(self, make: Callable[[], PackedBatchIterator]) -> None:
        self._made = functools.cache(make)

    def __call__(self, before: Mapping[str, Any], count: int, /) -> dict[str, Any]:
        """The numbers of the batches, their documents, and shares of tokens in long runs of one n-gram.

        Args:
            before: where the iterator stood.
            count: how many batches the step took.
        """
        batches, first = self._made(), int(before["batch"])
        numbers = range(first, first + count)
        usual = _share(batches.batch(number) for number in range(max(0, first - _USUAL_BATCHES), first))
        return {
            "batches": [first, first + count - 1],
            "repeated_share": _share(batches.batch(number) for number in numbers),
            "usual_repeated_share": usual,
            "documents": [asdict(segment) for number in numbers for segment in batches.trace(number)],
        }


def _share(batches: Iterable[Batch]) -> float:
    """The share of the tokens that lie in long runs of one n-gram; 0 of no batches. Padding is not counted."""
    counts = np.zeros(2, np.int64)
    for batch in batches:
        bounds = batch.cu_seqlens.numpy()
        # Padding has no labels, and neither has a document of one token, which repeats nothing.
        labels = np.add.reduceat(batch.labels[0].numpy() >= 0, bounds[:-1])
        document = np.repeat(labels > 0, np.diff(bounds))
        counts += [int(repeated(batch.tokens[0].numpy(), bounds)[document].sum()), int(document.sum())]
    return float(counts[0] / counts[1]) if counts[1] else 0.0
