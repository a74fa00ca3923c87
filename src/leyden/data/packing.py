"""Packed batches: documents laid one after another, in an order that can be taken up again anywhere.

The data of a run is one endless stream of tokens: the documents of epoch 0 in their shuffled order, those of epoch 1
in another, and so on. Batch k is the tokens from ``k * batch_tokens`` on. So a batch depends on nothing but its number,
the state of the iterator is that number, every epoch uses each token once, and a rank of many can make its share of a
batch (a run of its sequences) alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from leyden.core.errors import UserError
from leyden.data.shards import TokenShards

NO_LABEL = -100  # what cross-entropy ignores


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed sequences.

    Attributes:
        tokens: [1, T] int64.
        labels: [1, T] int64, the token that follows each in its document; -100 after a document's last.
        cu_seqlens: [N + 1] int32, on the CPU: the bounds of the segments, which neither attention nor state crosses. A
            segment is a document, or what of it lies in one sequence.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The documents of one epoch in its order: where each starts in the shards, and where it ends in the epoch."""

    starts: np.ndarray  # [D] int64
    lengths: np.ndarray  # [D] int64
    ends: np.ndarray  # [D] int64


class PackedBatches:
    """An endless iterator of batches, each of ``batch_tokens / seq_len`` sequences of exactly ``seq_len`` tokens.

    A document that does not fit what is left of a sequence is cut; its rest begins the next one, as a segment of its
    own. The label of the last token before a cut is the token after it, so no target is lost. Nothing is padded.
    """

    def __init__(self, shards: TokenShards, *, seq_len: int, batch_tokens: int, seed: int) -> None:
        """Start at batch 0.

        Raises:
            UserError: ``batch_tokens`` is not a positive multiple of ``seq_len``.
        """
        if seq_len < 1 or batch_tokens < 1 or batch_tokens % seq_len:
            raise UserError(
                f"A batch holds whole sequences: batch_tokens must be a positive multiple of seq_len; given: "
                f"{batch_tokens} and {seq_len}."
            )
        self._shards = shards
        self._seq_len = seq_len
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._next = 0
        # A batch lies in one epoch or across the border of two.
        self._epoch = lru_cache(maxsize=2)(self._lay_out)
        settings = {"shards": shards.fingerprint, "seq_len": seq_len, "batch_tokens": batch_tokens, "seed": seed}
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def epoch(self) -> float:
        """How often the documents have been gone through, as a fraction."""
        return self._next * self._batch_tokens / self._shards.num_tokens

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self._next)
        self._next += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands: the number of the batch that comes next, and what it is a batch of."""
        return {"batch": self._next, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            UserError: the state belongs to other data, or to other settings.
        """
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "The run cannot be resumed on other data: the token shards, seq_len, batch_tokens or seed differ from "
                "those that it was saved with. Restore them, or start a new run."
            )
        self._next = int(state["batch"])

    def batch(self, number: int) -> Batch:
        """Batch ``number``, whatever came before."""
        return self.sequences(number * self._batch_tokens // self._seq_len, self._batch_tokens // self._seq_len)

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences of the stream from number ``first`` on, as one batch.

        A rank's share of batch k is a run of the sequences ``k * batch_tokens / seq_len ...`` of it.
        """
        num_tokens = count * self._seq_len
        starts, lengths, last_is_cut = self._pieces(first * self._seq_len, num_tokens)
        tokens = self._shards.gather(starts, lengths)
        ends = np.cumsum(lengths)
        labels = np.empty_like(tokens)
        labels[:-1] = tokens[1:]
        labels[ends - 1] = NO_LABEL
        if last_is_cut:
            labels[-1] = self._shards.gather(starts[-1:] + lengths[-1:], np.ones(1, np.int64))[0]
        bounds = np.union1d(ends, np.arange(0, num_tokens + 1, self._seq_len)).astype(np.int32)
        return Batch(torch.from_numpy(tokens)[None], torch.from_numpy(labels)[None], torch.from_numpy(bounds))

    def _pieces(self, position: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """The documents at ``position`` of the stream, in order; the first and the last may be parts of theirs.

        Returns:
            starts, lengths: [P] int64, where each lies in the shards; and whether the last goes on behind.
        """
        pieces = []
        while num_tokens:
            number, offset = divmod(position, self._shards.num_tokens)
            taken = min(num_tokens, self._shards.num_tokens - offset)
            pieces.append(_cut(self._epoch(number), offset, taken))
            position += taken
            num_tokens -= taken
        starts, lengths, is_cut = zip(*pieces, strict=True)
        return np.concatenate(starts), np.concatenate(lengths), is_cut[-1]

    def _lay_out(self, number: int) -> _Epoch:
        order = np.argsort(_hash(np.arange(self._shards.num_documents), self._seed, number), kind="stable")
        lengths = self._shards.lengths[order]
        return _Epoch(self._shards.starts[order], lengths, np.cumsum(lengths))


def _cut(epoch: _Epoch, offset: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """The documents of an epoch from ``offset`` on, as :meth:`PackedBatches._pieces` gives them."""
    first = np.searchsorted(epoch.ends, offset, side="right")
    last = np.searchsorted(epoch.ends, offset + num_tokens, side="left")
    chosen = slice(first, last + 1)
    starts, lengths, ends = epoch.starts[chosen].copy(), epoch.lengths[chosen].copy(), epoch.ends[chosen]
    head = offset - (ends[0] - lengths[0])  # tokens of the first document that lie before
    starts[0] += head
    lengths[0] -= head
    tail = ends[-1] - (offset + num_tokens)  # tokens of the last document that lie behind
    lengths[-1] -= tail
    return starts, lengths, bool(tail)


def _hash(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random number for each index [D] -> uint64: splitmix64 (Steele, Lea and Flood, 2014), thrice keyed.

    Written out, for the streams of numpy's generators may change between versions, and a run must resume under any.
    """
    value = np.array([seed % 2**64], np.uint64)
    for key in (np.array([epoch], np.uint64), index.astype(np.uint64)):
        value = _mix(value) + key
    return _mix(value)


def _mix(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
