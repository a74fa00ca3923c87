"""What chats and pairs share on their way into sequences: what fits, what is learned of it, what is measured."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from leyden.data.shards import TokenShards

TooLong = Literal["cut", "leave_out"]
"""What becomes of a chat or a pair that is longer than a sequence: its beginning is kept, or nothing."""

_AT_ONCE = 1 << 24
"""Tokens whose masks are looked at together."""


@dataclass(frozen=True, eq=False)
class FittingRows:
    """Rows of files, chats or pairs, of which each fits into a sequence.

    Attributes:
        shards: they.
        answer_tokens: [D] int64, how many labels each document has.
        num_rows: how many there were.
        num_cut, cut_tokens: how many lost their ends, and how many tokens that is.
        num_left_out: how many were left out, because of their length, or because nothing to learn would stay.
        noun: what they are.
    """

    noun: ClassVar[str]

    shards: TokenShards
    answer_tokens: np.ndarray
    num_rows: int
    num_cut: int
    cut_tokens: int
    num_left_out: int

    def __str__(self) -> str:
        if not self.num_cut + self.num_left_out:
            return f"all {self.num_rows:,} {self.noun} fit"
        return (
            f"of {self.num_rows:,} {self.noun} {self.num_cut:,} are cut, by {self.cut_tokens:,} tokens, and "
            f"{self.num_left_out:,} are left out"
        )


def or_cut(too_long: TooLong) -> str:
    """What else may be done where nothing fits, as the end of a message."""
    return ', or say too_long = "cut"' if too_long == "leave_out" else ""


def num_labels(shards: TokenShards) -> np.ndarray:
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


def take_evenly(lengths: np.ndarray, cell: np.ndarray, num_tokens: int) -> np.ndarray:
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
