"""Groups of documents in batches, each once: what a model is measured on, or is asked for the likelihoods of."""

import hashlib

import numpy as np

from leyden.data.loader.best_fit import best_fit
from leyden.data.loader.grouped import GroupedBatches, GroupedDocuments, GroupStream
from leyden.data.loader.pieces import PIECE, Pieces
from leyden.data.shards import TokenShards


class OnceBatches(GroupedBatches):
    """Batches in which every group is once, packed by best fit, the longest first; behind them is padding.

    Args:
        documents: in groups.
        seq_len: tokens of a sequence, at least those of the longest group.
        batch_tokens: a multiple of it.
        multiple: the number of batches is a multiple of this.

    Attributes:
        num_batches: how many there are.

    Raises:
        UserError: as :class:`leyden.data.loader.grouped.GroupedBatches`.
    """

    def __init__(self, documents: GroupedDocuments, *, seq_len: int, batch_tokens: int, multiple: int = 1) -> None:
        super().__init__(documents, seq_len=seq_len, batch_tokens=batch_tokens, seed=0)
        once = _Once(documents.joined, seq_len)
        self._stream = _OnceStream(documents, once)
        self.fingerprint = hashlib.sha256(f"{documents.fingerprint} once {seq_len} {batch_tokens}".encode()).hexdigest()
        per_step = self.sequences_per_batch * multiple
        self.num_batches = -(-once.num_sequences // per_step) * multiple


class _Once:
    """Documents packed once; then sequences are empty. A :class:`leyden.data.loader.pieces.Stream`."""

    def __init__(self, shards: TokenShards, seq_len: int) -> None:
        self.shards, self.seq_len, self.fingerprint = shards, seq_len, shards.fingerprint
        places = best_fit(shards.lengths, seq_len, 0)
        self._documents = np.argsort(places, kind="stable")
        self._bounds = np.cumsum([0, *np.bincount(places).tolist()])
        self.num_sequences = len(self._bounds) - 1

    def pieces(self, first: int, count: int) -> Pieces:
        """See :class:`leyden.data.loader.pieces.Stream`."""
        bounds = self._bounds[np.arange(first, first + count + 1).clip(max=self.num_sequences)]
        numbers = self._documents[bounds[0] : bounds[-1]]
        pieces = np.zeros(len(numbers), PIECE)
        pieces["document"], pieces["length"] = numbers, self.shards.lengths[numbers]
        return Pieces(pieces, bounds - bounds[0])

    def tokens_before(self, sequence: int) -> int:
        """See :class:`leyden.data.loader.pieces.Stream`."""
        numbers = self._documents[: self._bounds[min(sequence, self.num_sequences)]]
        return int(self.shards.lengths[numbers].sum())


class _OnceStream(GroupStream):
    """Groups packed once."""

    def __init__(self, documents: GroupedDocuments, once: _Once) -> None:
        super().__init__(documents, seq_len=once.seq_len, seed=0)
        self._groups = once
