"""Held-out documents in batches, each token predicted once: what a model in training is measured on."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from leyden.data.loader.packing import Batch, PackedBatchIterator, Segment
from leyden.data.loader.rows import NO_LABEL, PADDING, TokenRows
from leyden.tokenizer import Tokenizer


class HeldOutBatches(PackedBatchIterator):
    """Some documents, one after another, in sequences as long as those of training; the last are filled with padding.

    A document that does not fit what is left of a sequence is cut, its rest begins the next one, and the label of the
    last token before the cut is the token after it. The documents are drawn by a fixed seed, and the last of them is
    cut where there are enough tokens.

    Args:
        documents: texts.
        tokenizer: the model's.
        num_tokens: how many tokens are taken, at most.
        seq_len: tokens of a sequence.
        batch_tokens: of a batch, over all ranks.
        multiple: the number of batches is a multiple of this.

    Attributes:
        num_batches: how many there are.
        num_bytes: UTF-8 bytes that the labels stand for.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: Tokenizer,
        *,
        num_tokens: int,
        seq_len: int,
        batch_tokens: int,
        multiple: int = 1,
    ) -> None:
        super().__init__(seq_len=seq_len, batch_tokens=batch_tokens)
        taken = list(_take(documents, tokenizer, num_tokens))
        ends = np.cumsum([len(ids) for ids in taken])
        total = int(ends[-1])
        self.num_batches = -(-total // (batch_tokens * multiple)) * multiple
        tokens = np.full(self.num_batches * batch_tokens, PADDING, np.int64)
        tokens[:total] = np.concatenate(taken)
        labels = np.full_like(tokens, NO_LABEL)
        labels[: total - 1] = tokens[1:total]
        labels[ends - 1] = NO_LABEL
        self.num_bytes = sum(
            count * len(tokenizer.token_bytes(token))
            for token, count in enumerate(np.bincount(labels[labels != NO_LABEL]).tolist())
            if count and not tokenizer.is_special(token)
        )
        self._tokens, self._labels = tokens.reshape(-1, seq_len), labels.reshape(-1, seq_len)
        self._bounds = np.union1d(ends, np.arange(0, len(tokens) + 1, seq_len))
        self.fingerprint = hashlib.sha256(tokens.tobytes()).hexdigest()

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences from number ``first`` on, as one batch."""
        start, stop = first * self.seq_len, (first + count) * self.seq_len
        inside = self._bounds[(self._bounds >= start) & (self._bounds <= stop)]
        counts = np.bincount((inside[:-1] - start) // self.seq_len, minlength=count)
        these = slice(first, first + count)
        return Batch.of(TokenRows(self._tokens[these], self._labels[these], np.diff(inside), counts))

    def trace(self, number: int) -> list[Segment]:
        """Nothing is told of single documents."""
        return []


def _take(documents: Sequence[str], tokenizer: Tokenizer, num_tokens: int) -> Iterator[np.ndarray]:
    """Tokens of documents in a drawn order, from what begins each to what ends it, ``num_tokens`` in all at most."""
    left = num_tokens
    for index in np.random.default_rng(0).permutation(len(documents)).tolist():
        if left < 2:  # one that is read, and one that is predicted
            return
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(documents[int(index)]), tokenizer.eod_id], np.int64)[:left]
        left -= len(ids)
        yield ids
