"""Which source each sequence of a mixture is from: asked shares, met at every moment.

A sequence holds documents of one source and one class of lengths, so a share of sequences is a share of tokens (to
within the padding, below 1 %). Sources take turns: each sequence every source earns its share of one sequence, and the
one to which most is owed comes next and pays for it. No source is ever a whole sequence ahead of what was asked of it,
and lags are as small as its share allows, which random draws are not: after n of them a share s is off by
sqrt(n s (1 - s)). All of it is integers, so every machine finds the same order.
"""

from functools import lru_cache

import numpy as np

from leyden.data.loader.mixture_shares import ONE, Shares

_CHUNK = 4096  # sequences; where each begins is kept, and batches are found from there


class Turns:
    """Which component each sequence is from, and which of that component's sequences it is.

    Args:
        shares: along the stage.
        num_components: how many there are.
        batch_tokens: of a batch, within which shares do not change.
        sequences_per_batch: how many it has.
    """

    def __init__(self, shares: Shares, num_components: int, batch_tokens: int, sequences_per_batch: int) -> None:
        self._shares = shares
        self._batch_tokens, self._per_batch = batch_tokens, sequences_per_batch
        nothing = np.zeros(num_components, np.int64)
        self._begins = [(nothing, nothing)]  # of each chunk: what each component is owed, and its sequences before
        self._chunk = lru_cache(maxsize=8)(self._make)

    def of(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For ``count`` sequences from ``first`` on, the component of each [count], and each one's sequences before."""
        chosen = []
        start, end = first // _CHUNK * _CHUNK, first + count
        for chunk in range(first // _CHUNK, -(-end // _CHUNK)):
            chosen.append(self._chunk(chunk))
        before = self._begins[first // _CHUNK][1]
        turns = np.concatenate(chosen)
        skipped = turns[: first - start]
        return turns[first - start : end - start], before + np.bincount(skipped, minlength=len(before))

    def before(self, sequence: int) -> np.ndarray:
        """How many of the sequences before number ``sequence`` are of each component: [components] int64."""
        return self.of(sequence, 1)[1]

    def _make(self, chunk: int) -> np.ndarray:
        while len(self._begins) <= chunk:
            self._run(len(self._begins) - 1)
        return self._run(chunk)

    def _run(self, chunk: int) -> np.ndarray:
        """The turns of a chunk; where the next begins is kept."""
        owed, before = self._begins[chunk]
        owed = owed.copy()
        chosen = np.empty(_CHUNK, np.int64)
        for place in range(_CHUNK):
            owed += self._shares.at((chunk * _CHUNK + place) // self._per_batch * self._batch_tokens)
            turn = int(owed.argmax())
            owed[turn] -= ONE
            chosen[place] = turn
        if len(self._begins) == chunk + 1:
            self._begins.append((owed, before + np.bincount(chosen, minlength=len(owed))))
        return chosen
