"""Held-out documents in batches, each token predicted once: what a model in training is measured on."""

import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from leyden.data.documents import HeldOutDocument
from leyden.data.loader.packing import Batch, PackedBatchIterator, Segment
from leyden.data.loader.rows import NO_LABEL, PADDING, TokenRows
from leyden.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldOutPart:
    """The held-out documents of one source and one class of lengths.

    Attributes:
        source: as the documents say.
        length_class: from 0, the shortest.
        num_labels: predicted tokens.
        num_bytes: UTF-8 bytes that they stand for.
    """

    source: str
    length_class: int
    num_labels: int
    num_bytes: int


class HeldOutBatches(PackedBatchIterator):
    """Some documents, one after another, in sequences as long as those of training; the last are filled with padding.

    A document that does not fit what is left of a sequence is cut, its rest begins the next one, and the label of the
    last token before the cut is the token after it. The documents are drawn by a fixed seed. Every source, and every
    class of lengths of it, gives an equal share of the tokens as far as it has them; the last document of a share is
    cut.

    Args:
        documents: which.
        tokenizer: the model's.
        num_tokens: how many tokens are taken, at most.
        seq_len: tokens of a sequence.
        batch_tokens: of a batch, over all ranks.
        multiple: the number of batches is a multiple of this.
        length_bounds: the most tokens of each class of lengths but the last; they rise.

    Attributes:
        num_batches: how many there are.
        num_bytes: UTF-8 bytes that the labels stand for.
        parts: what the documents are divided into. ``per_document["part"]`` of a batch says which of them each segment
            is of.
    """

    def __init__(
        self,
        documents: Sequence[HeldOutDocument],
        tokenizer: Tokenizer,
        *,
        num_tokens: int,
        seq_len: int,
        batch_tokens: int,
        multiple: int = 1,
        length_bounds: Sequence[int] = (),
    ) -> None:
        super().__init__(seq_len=seq_len, batch_tokens=batch_tokens)
        cells, taken = zip(*_take(documents, tokenizer, num_tokens, length_bounds), strict=True)
        ends = np.cumsum([len(ids) for ids in taken])
        total = int(ends[-1])
        self.num_batches = -(-total // (batch_tokens * multiple)) * multiple
        tokens = np.full(self.num_batches * batch_tokens, PADDING, np.int64)
        tokens[:total] = np.concatenate(taken)
        labels = np.full_like(tokens, NO_LABEL)
        labels[: total - 1] = tokens[1:total]
        labels[ends - 1] = NO_LABEL
        names = sorted(set(cells))
        of_document = np.array([names.index(cell) for cell in cells])
        of_token = np.repeat(of_document, np.diff(ends, prepend=0))
        counts = [_count(labels[:total][of_token == number], tokenizer) for number in range(len(names))]
        self.parts: Sequence[HeldOutPart] = tuple(
            HeldOutPart(source, length_class, num_labels, num_bytes)
            for (source, length_class), (num_labels, num_bytes) in zip(names, counts, strict=True)
        )
        self.num_bytes: int | None = sum(part.num_bytes for part in self.parts)
        self._tokens, self._labels = tokens.reshape(-1, seq_len), labels.reshape(-1, seq_len)
        self._bounds = np.union1d(ends, np.arange(0, len(tokens) + 1, seq_len))
        # Behind the last document is padding, which has no labels and may be of any part.
        document = np.searchsorted(ends, self._bounds[:-1], side="right").clip(max=len(ends) - 1)
        self._part_of_segment = of_document[document]
        self.fingerprint = hashlib.sha256(tokens.tobytes()).hexdigest()

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences from number ``first`` on, as one batch."""
        start, stop = first * self.seq_len, (first + count) * self.seq_len
        where = slice(*np.searchsorted(self._bounds, [start, stop]).tolist())
        inside = np.append(self._bounds[where], stop)
        counts = np.bincount((inside[:-1] - start) // self.seq_len, minlength=count)
        these = slice(first, first + count)
        batch = Batch.of(TokenRows(self._tokens[these], self._labels[these], np.diff(inside), counts))
        return replace(batch, per_document={"part": torch.from_numpy(self._part_of_segment[where])})

    def trace(self, number: int) -> list[Segment]:
        """Nothing is told of single documents."""
        return []


def class_names(length_bounds: Sequence[int]) -> list[str]:
    """The classes of lengths in words, as ``1-8192``, ``8193-32768`` and ``32769-``."""
    starts = [1, *(bound + 1 for bound in length_bounds)]
    return [f"{start}-{stop}" for start, stop in itertools.zip_longest(starts, length_bounds, fillvalue="")]


def _take(
    documents: Sequence[HeldOutDocument], tokenizer: Tokenizer, num_tokens: int, length_bounds: Sequence[int]
) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """(source, class of length) and tokens of documents in a drawn order, from what begins each to what ends it."""
    classes = range(len(length_bounds) + 1)
    sources = {document.source for document in documents}
    # One token is read and one predicted: less says nothing.
    share = max(2, num_tokens // (len(sources) * len(classes)))
    left = {(source, number): share for source in sources for number in classes}
    for index in np.random.default_rng(0).permutation(len(documents)).tolist():
        text, source = documents[int(index)].text, documents[int(index)].source
        # It has no more tokens than bytes, and those around it: where no class up to that has room, it is not needed.
        longest = bisect_left(length_bounds, len(text.encode()) + 2)
        if all(left[source, number] < 2 for number in classes[: longest + 1]):
            continue
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eod_id], np.int64)
        cell = (source, bisect_left(length_bounds, len(ids)))
        if left[cell] >= 2:
            ids = ids[: left[cell]]
            left[cell] -= len(ids)
            yield cell, ids


def _count(labels: np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
    """How many labels there are, and how many bytes they stand for."""
    counts = np.bincount(labels[labels != NO_LABEL]).tolist()
    num_bytes = sum(
        count * len(tokenizer.token_bytes(token))
        for token, count in enumerate(counts)
        if count and not tokenizer.is_special(token)
    )
    return sum(counts), num_bytes
