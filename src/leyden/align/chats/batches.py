"""Chats as packed batches: each chat whole in one sequence, none cut unless it is longer than a sequence."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from leyden.core.errors import UserError
from leyden.data.loader.grouped import GroupedBatches, GroupedDocuments, GroupStream
from leyden.data.loader.held_out import HeldOutPart
from leyden.data.loader.pieces import PIECE, Pieces
from leyden.data.shards import TokenShards
from leyden.tokenizer import Tokenizer

TooLong = Literal["cut", "leave_out"]
"""What becomes of a chat that is longer than a sequence: its beginning is kept, or nothing."""

Normalise = Literal["tokens", "chats"]
"""What counts alike in the loss: every token to learn, or every chat, by the mean over its tokens."""

WEIGHT = "weight"
"""The weight of each token to learn of a chat, among :attr:`leyden.data.Batch.per_document`."""

_AT_ONCE = 1 << 24
"""Tokens whose masks are looked at together."""


@dataclass(frozen=True, eq=False)
class FittingChats:
    """Chats of which each fits into a sequence.

    Attributes:
        shards: they.
        answer_tokens: [D] int64, how many labels each has.
        num_chats: how many there were.
        num_cut, cut_tokens: how many lost their ends, and how many tokens that is.
        num_left_out: how many were left out, because of their length, or because no answer begins in what would stay.
    """

    shards: TokenShards
    answer_tokens: np.ndarray
    num_chats: int
    num_cut: int
    cut_tokens: int
    num_left_out: int

    def __str__(self) -> str:
        if not self.num_cut + self.num_left_out:
            return f"all {self.num_chats:,} chats fit"
        return (
            f"of {self.num_chats:,} chats {self.num_cut:,} are cut, by {self.cut_tokens:,} tokens, and "
            f"{self.num_left_out:,} are left out"
        )


def fit_chats(shards: TokenShards, seq_len: int, too_long: TooLong) -> FittingChats:
    """The chats as they go into sequences of ``seq_len`` tokens.

    Raises:
        UserError: none fits.
    """
    long = shards.lengths > seq_len
    cut = shards.shortened(np.flatnonzero(long), np.full(long.sum(), seq_len if too_long == "cut" else 0))
    was_long = long if too_long == "cut" else np.zeros(cut.num_documents, bool)
    labels = _labels(cut)
    kept = labels > 0
    if not kept.any():
        raise UserError(
            f"None of {shards.num_documents:,} chats has an answer within {seq_len} tokens; make seq_len larger (the "
            f"shortest chat has {int(shards.lengths.min()):,} tokens){_or_cut(too_long)}."
        )
    cut_tokens = shards.lengths[long][kept[was_long]] - seq_len if too_long == "cut" else np.zeros(0, np.int64)
    return FittingChats(
        shards=cut if kept.all() else cut.select(kept, "with answers"),
        answer_tokens=labels[kept],
        num_chats=shards.num_documents,
        num_cut=len(cut_tokens),
        cut_tokens=int(cut_tokens.sum()),
        num_left_out=shards.num_documents - int(kept.sum()),
    )


def _or_cut(too_long: TooLong) -> str:
    return ', or say too_long = "cut"' if too_long == "leave_out" else ""


def _labels(shards: TokenShards) -> np.ndarray:
    """[D] int64, how many tokens of each document are learned; the first of a document cannot be."""
    ends = np.cumsum(shards.lengths)
    counts = np.zeros(shards.num_documents, np.int64)
    cuts = np.unique(np.searchsorted(ends, np.arange(_AT_ONCE, shards.num_tokens, _AT_ONCE)))
    for documents in np.split(np.arange(shards.num_documents), cuts):
        if len(documents):
            lengths = shards.lengths[documents]
            learned = shards.learned(shards.starts[documents], lengths)
            first = np.cumsum(lengths) - lengths
            learned[first] = False
            counts[documents] = np.add.reduceat(learned, first, dtype=np.int64)
    return counts


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
        chats: as given.
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
        self.chats = chats


class HeldOutChats(GroupedBatches):
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
        taken = _take(shards.lengths, cell, num_tokens)
        cells, part = np.unique(cell[taken], return_inverse=True)
        own = FittingChats(shards.select(taken, "measured"), chats.answer_tokens[taken], int(taken.sum()), 0, 0, 0)
        documents = weighted(own, normalise)
        documents = GroupedDocuments(
            documents.shards, documents.bounds, per_document={**documents.per_document, "part": part.astype(np.int64)}
        )
        super().__init__(documents, seq_len=seq_len, batch_tokens=batch_tokens, seed=0)
        once = _Once(documents.shards, seq_len)
        self._stream = _OnceStream(documents, once)
        self.fingerprint = hashlib.sha256(f"{documents.fingerprint} once {seq_len} {batch_tokens}".encode()).hexdigest()
        per_step = self.sequences_per_batch * multiple
        self.num_batches = -(-len(once.sequences) // per_step) * multiple
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


class _Once:
    """Documents packed once, the longest first, each into the first sequence with room; then sequences are empty."""

    def __init__(self, shards: TokenShards, seq_len: int) -> None:
        self.shards, self.seq_len, self.fingerprint = shards, seq_len, shards.fingerprint
        self.sequences: list[list[int]] = []
        room: list[int] = []
        for number in np.argsort(-shards.lengths, kind="stable").tolist():
            length = int(shards.lengths[number])
            place = next((place for place, left in enumerate(room) if left >= length), len(room))
            if place == len(room):
                room.append(seq_len)
                self.sequences.append([])
            room[place] -= length
            self.sequences[place].append(number)

    def pieces(self, first: int, count: int) -> Pieces:
        """See :class:`leyden.data.loader.pieces.Stream`."""
        chosen = [self.sequences[n] if n < len(self.sequences) else [] for n in range(first, first + count)]
        numbers = np.array([number for sequence in chosen for number in sequence], np.int64)
        pieces = np.zeros(len(numbers), PIECE)
        pieces["document"], pieces["length"] = numbers, self.shards.lengths[numbers]
        return Pieces(pieces, np.cumsum([0, *map(len, chosen)]))

    def tokens_before(self, sequence: int) -> int:
        """See :class:`leyden.data.loader.pieces.Stream`."""
        return int(sum(self.shards.lengths[numbers].sum() for numbers in self.sequences[:sequence]))


class _OnceStream(GroupStream):
    """Chats packed once."""

    def __init__(self, documents: GroupedDocuments, once: _Once) -> None:
        super().__init__(documents, seq_len=once.seq_len, seed=0)
        self._groups = once


def _take(lengths: np.ndarray, cell: np.ndarray, num_tokens: int) -> np.ndarray:
    """[D] bool: documents in a drawn order, of each cell in turn, as long as there is room; at least one."""
    drawn = np.random.default_rng(0).permutation(len(lengths))
    place = np.zeros(len(lengths), np.int64)  # of each in its cell
    for one in np.unique(cell):
        own = drawn[cell[drawn] == one]
        place[own] = np.arange(len(own))
    order = drawn[np.argsort(place[drawn], kind="stable")]
    fits = np.cumsum(lengths[order]) <= num_tokens
    fits[0] = True
    taken = np.zeros(len(lengths), bool)
    taken[order[fits]] = True
    return taken


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
