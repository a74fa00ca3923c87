"""Chats as packed batches: each chat whole in one sequence, none cut unless it is longer than a sequence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from leyden.align.chats.fitting import FittingRows, TooLong, num_labels, or_cut, take_evenly
from leyden.core.errors import UserError
from leyden.data.loader.grouped import GroupedBatches, GroupedDocuments
from leyden.data.loader.held_out import HeldOutPart
from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import TimedMixture
from leyden.data.loader.once import OnceBatches
from leyden.data.shards import TokenShards
from leyden.tokenizer import Tokenizer

Normalise = Literal["tokens", "chats"]
"""What counts alike in the loss: every token to learn, or every chat, by the mean over its tokens."""

WEIGHT = "weight"
"""The weight of each token to learn of a chat, among :attr:`leyden.data.Batch.per_document`."""


class FittingChats(FittingRows):
    """Chats of which each fits into a sequence."""

    noun = "chats"


def fit_chats(shards: TokenShards, seq_len: int, too_long: TooLong) -> FittingChats:
    """The chats as they go into sequences of ``seq_len`` tokens.

    Raises:
        UserError: none fits.
    """
    long = shards.lengths > seq_len
    cut = shards.shortened(np.flatnonzero(long), np.full(long.sum(), seq_len if too_long == "cut" else 0))
    was_long = long if too_long == "cut" else np.zeros(cut.num_documents, bool)
    labels = num_labels(cut)
    kept = labels > 0
    if not kept.any():
        raise UserError(
            f"None of {shards.num_documents:,} chats has an answer within {seq_len} tokens; make seq_len larger (the "
            f"shortest chat has {int(shards.lengths.min()):,} tokens){or_cut(too_long)}."
        )
    cut_tokens = shards.lengths[long][kept[was_long]] - seq_len if too_long == "cut" else np.zeros(0, np.int64)
    return FittingChats(
        shards=cut if kept.all() else cut.select(kept, "with answers"),
        answer_tokens=labels[kept],
        num_rows=shards.num_documents,
        num_cut=len(cut_tokens),
        cut_tokens=int(cut_tokens.sum()),
        num_left_out=shards.num_documents - int(kept.sum()),
    )


def weighted(chats: FittingChats, normalise: Normalise) -> GroupedDocuments:
    """Each chat as a group of its own, with the weight of its tokens."""
    count = chats.shards.num_documents
    weight = np.ones(count) if normalise == "tokens" else 1 / chats.answer_tokens
    return GroupedDocuments(chats.shards, np.arange(count + 1), per_document={WEIGHT: weight})


class ChatBatches(GroupedBatches):
    """An endless stream of batches of chats, packed by best fit.

    Args:
        chats: that fit.
        normalise: what counts alike.
        seq_len: tokens of a sequence.
        batch_tokens: a multiple of it.
        seed: of the order.
        plans: as of :class:`leyden.data.PackedBatches`.

    Attributes:
        fitting: the chats, as given.
    """

    def __init__(
        self,
        chats: FittingChats,
        normalise: Normalise,
        *,
        seq_len: int,
        batch_tokens: int,
        seed: int,
        plans: Path | None = None,
    ) -> None:
        documents = weighted(chats, normalise)
        super().__init__(documents, seq_len=seq_len, batch_tokens=batch_tokens, seed=seed, plans=plans)
        self.fitting = chats


class MixedChats(MixedBatches):
    """The same with a share of the tokens for each class of lengths.

    Args:
        chats, normalise, seq_len, batch_tokens, seed, plans: as of :class:`ChatBatches`.
        mixture: of the one source ``all``.

    Attributes:
        fitting: the chats, as given.

    Raises:
        UserError: there is no chat in a class of lengths that is to have a share.
    """

    def __init__(
        self,
        chats: FittingChats,
        normalise: Normalise,
        mixture: TimedMixture,
        *,
        seq_len: int,
        batch_tokens: int,
        seed: int,
        plans: Path | None = None,
    ) -> None:
        sources = {"all": weighted(chats, normalise)}
        super().__init__(sources, mixture, seq_len=seq_len, batch_tokens=batch_tokens, seed=seed, plans=plans)
        self.fitting = chats


class HeldOutChats(OnceBatches):
    """Some chats, each once: what a model in training is measured on.

    Of every source and class of lengths about as many are taken, in a drawn order.

    Args:
        chats: that fit.
        normalise: what counts alike.
        tokenizer: the model's.
        num_tokens: how many tokens are taken, at most; one chat at least.
        seq_len, batch_tokens: as of :class:`ChatBatches`.
        multiple: the number of batches is a multiple of this.
        length_bounds: the most tokens of each class of lengths but the last.

    Attributes:
        num_batches: how many there are.
        num_bytes: UTF-8 bytes that the labels stand for; None where the loss is not a sum over them.
        parts: as of :class:`leyden.data.loader.held_out.HeldOutBatches`.
    """

    def __init__(
        self,
        chats: FittingChats,
        normalise: Normalise,
        tokenizer: Tokenizer,
        *,
        num_tokens: int,
        seq_len: int,
        batch_tokens: int,
        multiple: int = 1,
        length_bounds: Sequence[int] = (),
    ) -> None:
        shards = chats.shards
        source = [shards.source(number) for number in range(shards.num_documents)]
        names, of_source = np.unique(source, return_inverse=True)
        of_class = np.searchsorted(np.array(length_bounds, np.int64), shards.lengths)
        cell = of_source * (len(length_bounds) + 1) + of_class
        taken = take_evenly(shards.lengths, cell, num_tokens)
        cells, part = np.unique(cell[taken], return_inverse=True)
        own = FittingChats(shards.select(taken, "measured"), chats.answer_tokens[taken], int(taken.sum()), 0, 0, 0)
        documents = weighted(own, normalise)
        documents = GroupedDocuments(
            documents.shards, documents.bounds, per_document={**documents.per_document, "part": part.astype(np.int64)}
        )
        super().__init__(documents, seq_len=seq_len, batch_tokens=batch_tokens, multiple=multiple)
        num_bytes = _label_bytes(own.shards, tokenizer)
        self.num_bytes = int(num_bytes.sum()) if normalise == "tokens" else None
        self.parts: Sequence[HeldOutPart] = tuple(
            HeldOutPart(
                str(names[one // (len(length_bounds) + 1)]),
                int(one % (len(length_bounds) + 1)),
                int(own.answer_tokens[part == number].sum()),
                int(num_bytes[part == number].sum()),
            )
            for number, one in enumerate(cells.tolist())
        )


def _label_bytes(shards: TokenShards, tokenizer: Tokenizer) -> np.ndarray:
    """[D] int64, the UTF-8 bytes of the tokens that are learned; special tokens have none."""
    sizes = np.array(
        [
            0 if tokenizer.is_special(token) else len(tokenizer.token_bytes(token))
            for token in range(tokenizer.vocab_size)
        ]
    )
    found = np.zeros(shards.num_documents, np.int64)
    for number in range(shards.num_documents):
        learned = shards.learned(shards.starts[number : number + 1], shards.lengths[number : number + 1])
        found[number] = sizes[shards.document(number)[1:][learned[1:]]].sum()
    return found
