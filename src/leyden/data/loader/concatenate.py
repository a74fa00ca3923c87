"""Documents laid one after another and cut at every ``seq_len`` tokens: nothing is padded, most documents are cut."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from leyden.data.loader.order import shuffled
from leyden.data.loader.pieces import PIECE, Pieces
from leyden.data.shards import TokenShards


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The documents of one epoch in its order, and where each ends in the epoch."""

    documents: np.ndarray  # [D] int64
    ends: np.ndarray  # [D] int64


class Concatenated:
    """One endless stream: the documents of epoch 0 in their shuffled order, those of epoch 1 in another, and so on."""

    def __init__(self, shards: TokenShards, *, seq_len: int, seed: int) -> None:
        self.shards = shards
        self.seq_len = seq_len
        self._seed = seed
        settings = {"packing": "concatenate", "shards": shards.fingerprint, "seq_len": seq_len, "seed": seed}
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        # A batch lies in one epoch or across the border of two.
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def tokens_before(self, sequence: int) -> int:
        """Tokens in all sequences before number ``sequence``."""
        return sequence * self.seq_len

    def pieces(self, first: int, count: int) -> Pieces:
        """What ``count`` sequences from number ``first`` on hold."""
        total = self.shards.num_tokens
        position, end = first * self.seq_len, (first + count) * self.seq_len
        parts = []
        while position < end:
            epoch, offset = divmod(position, total)
            taken = min(end - position, total - offset)
            parts.append(self._cut(self._epoch(epoch), offset, taken, -position % self.seq_len))
            position += taken
        pieces = np.concatenate(parts)
        ends = np.cumsum(pieces["length"], dtype=np.int64)
        bounds = np.searchsorted(ends, np.arange(count + 1) * self.seq_len, side="right")
        return Pieces(pieces, np.minimum(bounds, len(pieces)))

    def _cut(self, epoch: _Epoch, offset: int, num_tokens: int, first_cut: int) -> np.ndarray:
        """The documents of an epoch from ``offset`` on, cut after ``first_cut`` tokens and then at every seq_len."""
        end = offset + num_tokens
        first = np.searchsorted(epoch.ends, offset, side="right")
        last = np.searchsorted(epoch.ends, end, side="left")
        documents, ends = epoch.documents[first : last + 1], epoch.ends[first : last + 1]
        bounds = np.union1d(np.minimum(ends, end), np.arange(offset + first_cut, end, self.seq_len))
        bounds = np.union1d(bounds, [offset, end])
        starts = bounds[:-1]
        inside = np.searchsorted(ends, starts, side="right")
        pieces = np.empty(len(starts), PIECE)
        pieces["document"] = documents[inside]
        pieces["offset"] = starts - (ends - self.shards.lengths[documents])[inside]
        pieces["length"] = np.diff(bounds)
        return pieces

    def _lay_out(self, number: int) -> _Epoch:
        order = shuffled(self.shards.num_documents, self._seed, number)
        return _Epoch(order, np.cumsum(self.shards.lengths[order]))
