"""Pairs as packed batches: both answers of a pair in one sequence, with their reference log-probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from leyden.align.chats.fitting import FittingRows, TooLong, num_labels, or_cut, take_evenly
from leyden.align.preference.objective import ANSWER_TOKENS, REFERENCE
from leyden.core.errors import UserError
from leyden.data import Batch, TokenShards
from leyden.data.loader.grouped import GroupedBatches, GroupedDocuments
from leyden.data.loader.held_out import HeldOutPart
from leyden.data.loader.once import OnceBatches

ANSWER = "answer"
"""Of each answer, among :attr:`leyden.data.Batch.per_document`: its number among all answers of the files."""


class FittingPairs(FittingRows):
    """Pairs of which each fits into a sequence: documents 2 n and 2 n + 1 are pair n's chosen and rejected answer."""

    noun = "pairs"


def fit_pairs(shards: TokenShards, seq_len: int, too_long: TooLong) -> FittingPairs:
    """The pairs as they go into sequences of ``seq_len`` tokens, each of which holds both answers of a pair.

    What is cut of a pair that is longer is the end of its longer answer, and where that does not suffice, of both, to
    half a sequence each. A pair is left out whose answers are cut away, or are alike up to there.

    Args:
        shards: of two documents a pair, as :func:`leyden.align.preference.pairs.tokenise_pairs` gives them.
        seq_len: at least 2.
        too_long: what becomes of longer pairs.

    Raises:
        UserError: none fits.
    """
    lengths = shards.lengths.reshape(-1, 2)
    long = lengths.sum(1) > seq_len
    half = seq_len // 2
    # Each may have half of the sequence, and what the other one leaves of its half.
    room = np.maximum(seq_len - lengths[:, ::-1], half) if too_long == "cut" else np.zeros_like(lengths)
    kept = np.where(long[:, None], np.minimum(lengths, room), lengths)
    shortened = kept != lengths
    cut = shards.shortened(np.flatnonzero(shortened), kept[shortened])
    was_cut = shortened.any(1) if too_long == "cut" else np.zeros(cut.num_documents // 2, bool)
    labels = num_labels(cut)
    usable = np.minimum(labels[::2], labels[1::2]) > 0
    for pair in np.flatnonzero(usable & was_cut).tolist():
        usable[pair] = not np.array_equal(cut.document(2 * pair), cut.document(2 * pair + 1))
    if not usable.any():
        raise UserError(
            f"None of {len(lengths):,} pairs has two answers that differ within {seq_len} tokens, which must hold "
            f"both, each with its prompt; make seq_len larger (the shortest pair has {int(lengths.sum(1).min()):,} "
            f"tokens){or_cut(too_long)}."
        )
    answers = np.repeat(usable, 2)
    lost = (lengths - kept).sum(1)[usable & was_cut] if too_long == "cut" else np.zeros(0, np.int64)
    return FittingPairs(
        shards=cut if usable.all() else cut.select(answers, "that differ"),
        answer_tokens=labels[answers],
        num_rows=len(lengths),
        num_cut=len(lost),
        cut_tokens=int(lost.sum()),
        num_left_out=len(lengths) - int(usable.sum()),
    )


def paired(pairs: FittingPairs) -> GroupedDocuments:
    """The two answers of each pair as a group, each with its number and how many of its tokens are learned."""
    shards = pairs.shards
    values = {ANSWER_TOKENS: pairs.answer_tokens.astype(np.float64), ANSWER: shards.rows.astype(np.int64)}
    return GroupedDocuments(shards, np.arange(0, shards.num_documents + 1, 2), per_document=values)


def _with_reference(batch: Batch, reference: np.ndarray | None) -> Batch:
    if reference is None:
        return batch
    values = torch.from_numpy(reference)[batch.per_document[ANSWER]]
    return replace(batch, per_document={**batch.per_document, REFERENCE: values})


class PairBatches(GroupedBatches):
    """An endless stream of batches of pairs, packed by best fit. What is in a batch does not depend on the reference.

    Args:
        pairs: that fit.
        seq_len: tokens of a sequence.
        batch_tokens: a multiple of it.
        seed: of the order.
        plans: as of :class:`leyden.data.PackedBatches`.
        reference: [answers of the files] float64, of each its log-probability under the reference model; None: batches
            have none.

    Attributes:
        fitting: the pairs, as given.
    """

    def __init__(
        self,
        pairs: FittingPairs,
        *,
        seq_len: int,
        batch_tokens: int,
        seed: int,
        plans: Path | None = None,
        reference: np.ndarray | None = None,
    ) -> None:
        super().__init__(paired(pairs), seq_len=seq_len, batch_tokens=batch_tokens, seed=seed, plans=plans)
        self.fitting, self._reference = pairs, reference

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences of the stream from number ``first`` on, as one batch."""
        return _with_reference(super().sequences(first, count), self._reference)


class HeldOutPairs(OnceBatches):
    """Some pairs, each once: what a model in training is measured on. Of every source about as many are taken.

    Args:
        pairs: that fit.
        num_tokens: how many tokens are taken, at most; one pair at least.
        seq_len, batch_tokens, reference: as of :class:`PairBatches`.
        multiple: the number of batches is a multiple of this.

    Attributes:
        num_bytes: None, since the loss is not one of bytes.
        parts: none; the loss is not measured by source.
    """

    num_bytes: int | None = None
    parts: Sequence[HeldOutPart] = ()

    def __init__(
        self,
        pairs: FittingPairs,
        *,
        num_tokens: int,
        seq_len: int,
        batch_tokens: int,
        multiple: int = 1,
        reference: np.ndarray | None = None,
    ) -> None:
        documents, shards = paired(pairs), pairs.shards
        sources = [shards.source(number) for number in range(0, shards.num_documents, 2)]
        taken = take_evenly(documents.lengths, np.unique(sources, return_inverse=True)[1], num_tokens)
        answers = np.repeat(taken, 2)
        own = FittingPairs(shards.select(answers, "measured"), pairs.answer_tokens[answers], int(taken.sum()), 0, 0, 0)
        super().__init__(paired(own), seq_len=seq_len, batch_tokens=batch_tokens, multiple=multiple)
        self._reference = reference

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences from number ``first`` on, as one batch."""
        return _with_reference(super().sequences(first, count), self._reference)
