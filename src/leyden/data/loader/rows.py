"""Sequences as arrays: tokens, labels and the lengths of their segments."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from leyden.data.loader.pieces import Pieces, Stream
from leyden.data.shards import TokenShards

NO_LABEL = -100  # what cross-entropy ignores
PADDING = 0  # any token will do: it has no label, and nothing else sees its segment


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Some sequences.

    Attributes:
        tokens, labels: [sequences, seq_len] int64.
        segments: [N] int64, the length of each segment, sequence after sequence; padding is one.
        counts: [sequences] int64, how many segments each has.
        per_token: arrays [sequences, seq_len] by name, laid out as the labels.
        per_document: arrays [N, ...] by name; 0 for padding.
        groups: [N] int64, the group of each segment, counted from 0; -1 for padding. None where there are none.
    """

    tokens: np.ndarray
    labels: np.ndarray
    segments: np.ndarray
    counts: np.ndarray
    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_document: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: np.ndarray | None = None


def make_rows(stream: Stream, first: int, count: int) -> TokenRows:
    """``count`` sequences of a stream from number ``first`` on."""
    return lay(stream.shards, stream.pieces(first, count), stream.seq_len)


def lay(shards: TokenShards, held: Pieces, seq_len: int) -> TokenRows:
    """Fetch the tokens of sequences and form their labels; sequences without pieces are the last ones."""
    pieces, counts = held.pieces, np.diff(held.bounds)
    if not len(pieces):
        tokens = np.full((len(counts), seq_len), PADDING, np.int64)
        return TokenRows(tokens, np.full_like(tokens, NO_LABEL), np.full(len(counts), seq_len), np.ones_like(counts))
    document, offset, length = pieces["document"], pieces["offset"], pieces["length"].astype(np.int64)
    starts = shards.starts[document] + offset
    ends = np.cumsum(length)
    filled = np.diff(ends[held.bounds[1:] - 1], prepend=0)
    padded = np.flatnonzero(filled < seq_len)
    tokens = np.empty(len(counts) * seq_len, np.int64)
    views = shards.views(starts, length)
    # Segments are the pieces, and after the last of a sequence with room its padding.
    segments = np.insert(length, held.bounds[padded + 1], seq_len - filled[padded])
    if len(padded):
        views = _with_padding(views, held.bounds[padded + 1].tolist(), (seq_len - filled[padded]).tolist())
    np.concatenate(views, out=tokens)
    labels = np.empty_like(tokens)
    labels[:-1] = tokens[1:]
    row = np.repeat(np.arange(len(counts)), counts)
    last = ends + (row * seq_len - np.concatenate([[0], np.cumsum(filled)])[row]) - 1  # of each piece, in the rows
    labels[last] = NO_LABEL
    goes_on = np.flatnonzero(offset + length < shards.lengths[document])
    if len(goes_on):
        labels[last[goes_on]] = shards.gather(starts[goes_on] + length[goes_on], np.ones(len(goes_on), np.int64))
    for number in padded.tolist():
        labels[number * seq_len + filled[number] : (number + 1) * seq_len] = NO_LABEL
    if shards.has_masks:
        _hide(shards, labels, starts, length, last, goes_on)
    counts = counts.copy()
    counts[padded] += 1
    return TokenRows(tokens.reshape(-1, seq_len), labels.reshape(-1, seq_len), segments, counts)


def _with_padding(views: list[np.ndarray], places: list[int], lengths: list[int]) -> list[np.ndarray]:
    """``views`` with so much padding before each of ``places``."""
    zeros = np.full(max(lengths), PADDING, np.int32)
    result, done = [], 0
    for place, length in zip(places, lengths, strict=True):
        result += views[done:place]
        result.append(zeros[:length])
        done = place
    return result + views[done:]


def _hide(
    shards: TokenShards,
    labels: np.ndarray,
    starts: np.ndarray,
    length: np.ndarray,
    last: np.ndarray,
    goes_on: np.ndarray,
) -> None:
    """Take the labels away that are not to be learned."""
    learned = shards.learned(starts, length)
    first = np.cumsum(length) - length
    # A label is the token after: that of each token but a piece's first belongs one place before it.
    place = np.arange(len(learned)) + np.repeat(last + 1 - length - first, length)
    hidden = ~learned
    hidden[first] = False
    labels[place[hidden] - 1] = NO_LABEL
    if len(goes_on):
        after = shards.learned(starts[goes_on] + length[goes_on], np.ones(len(goes_on), np.int64))
        labels[last[goes_on[~after]]] = NO_LABEL
