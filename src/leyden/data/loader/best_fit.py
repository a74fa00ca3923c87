"""Best-fit packing: which documents share a sequence, so that none is cut that fits and next to nothing is padded.

The documents of an epoch, shuffled, are taken in windows. A document longer than a sequence is cut into pieces of
``seq_len``, all of which are used. Within a window, pieces from the longest to the shortest go each into the sequence
with the least room that suffices (best fit decreasing; for language models: Ding et al. 2024, arXiv 2404.10830). The
emptiest sequence of a window is not closed, but goes on in the next one, across epochs as well.

Where the sequences of a window would still be padded by more than ``max_padding`` (all documents of 0.6 ``seq_len``,
say), as few documents as it takes are cut to fill them. Then both promises cannot be kept, and the cheaper one is: with
``max_padding = 1`` no document that fits is ever cut.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leyden.data.loader.order import shuffled
from leyden.data.loader.pieces import PIECE
from leyden.data.shards import TokenShards

WINDOW_SEQUENCES = 1024
"""Tokens of a window, in sequences: enough that its last, emptiest ones do not matter, little enough for memory."""


@dataclass(frozen=True, eq=False)
class PackingWindow:
    """Sequences that are closed, and the one that is not.

    Attributes:
        pieces: [P] of PIECE, sequence after sequence.
        counts: [sequences] int64, pieces of each.
        pending: [O] of PIECE, of the sequence that is not closed: what the next window begins with.
    """

    pieces: np.ndarray
    counts: np.ndarray
    pending: np.ndarray


def plan_epoch(
    shards: TokenShards, *, seq_len: int, seed: int, epoch: int, pending: np.ndarray, max_padding: float
) -> Iterator[PackingWindow]:
    """The windows of one epoch, in order.

    Args:
        shards: the documents.
        seq_len, seed, max_padding: of the plan.
        epoch: from 0.
        pending: what the epoch before left over; empty for epoch 0.
    """
    order = shuffled(shards.num_documents, seed, epoch)
    ends = np.cumsum(shards.lengths[order])
    size = WINDOW_SEQUENCES * seq_len
    cuts = np.searchsorted(ends, np.arange(size, ends[-1] + 1, size))
    for number, documents in enumerate(np.split(order, np.unique(cuts))):
        if len(documents):
            window = pack(pending, cut(documents, shards.lengths[documents], seq_len), seq_len, max_padding)
            window = _shuffle(window, bool(len(pending)), seed, epoch, number)
            pending = window.pending
            yield window


def cut(documents: np.ndarray, lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Whole documents [D], and those longer than ``seq_len`` in pieces of it and a rest: [P] of PIECE, in order."""
    num_pieces = -(-lengths // seq_len)
    ends = np.cumsum(num_pieces)
    nth = np.arange(ends[-1]) - np.repeat(ends - num_pieces, num_pieces)
    pieces = np.empty(len(nth), PIECE)
    pieces["document"] = np.repeat(documents, num_pieces)
    pieces["offset"] = nth * seq_len
    pieces["length"] = np.minimum(np.repeat(lengths, num_pieces) - nth * seq_len, seq_len)
    return pieces


def pack(pending: np.ndarray, pieces: np.ndarray, seq_len: int, max_padding: float) -> PackingWindow:
    """Pack the pieces of a window behind those of the open sequence, which comes first where it is closed."""
    used = int(pending["length"].sum())
    place = best_fit(pieces["length"], seq_len, used)
    pieces = np.concatenate([pending, pieces])
    place = np.concatenate([np.zeros(len(pending), np.int64), place])
    filled = np.bincount(place, pieces["length"]).astype(np.int64)
    movable = filled[1:] if len(pending) else filled
    last = len(filled) - len(movable) + int(np.argmin(movable)) if len(movable) else 0
    if (len(filled) - 1) * seq_len - (filled.sum() - filled[last]) > max_padding * (len(filled) - 1) * seq_len:
        pieces, place, last = _pour(pieces, place, filled, seq_len, max_padding, keep_first=bool(len(pending)))
    by_place = np.argsort(place, kind="stable")
    counts = np.bincount(place)
    left = place[by_place] == last
    counts[last] = 0
    return PackingWindow(pieces[by_place][~left], counts[counts > 0], pieces[by_place][left])


def best_fit(lengths: np.ndarray, capacity: int, used: int) -> np.ndarray:
    """The bin of each item, from the longest item to the shortest into the bin with the least room that suffices.

    Args:
        lengths: [N], at most ``capacity``.
        capacity: of a bin.
        used: what is in bin 0 already; 0: there is no such bin.

    Returns:
        [N] int64; bins are numbered in the order in which they are opened.
    """
    num_bins = 1 if used else 0
    full = lengths == capacity
    bins = np.empty(len(lengths), np.int64)
    bins[full] = num_bins + np.arange(full.sum())
    num_bins += int(full.sum())
    order = np.flatnonzero(~full)
    order = order[np.argsort(-lengths[order], kind="stable")]
    with_room: dict[int, list[int]] = {capacity - used: [0]} if 0 < used < capacity else {}
    rooms = list(with_room)  # ascending
    chosen = []
    for length in lengths[order].tolist():
        index = bisect_left(rooms, length)
        if index == len(rooms):
            room, place = capacity, num_bins
            num_bins += 1
        else:
            room = rooms[index]
            place = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[index]
        chosen.append(place)
        if room > length:
            same = with_room.setdefault(room - length, [])
            if not same:
                insort(rooms, room - length)
            same.append(place)
    bins[order] = chosen
    return bins


def _pour(
    pieces: np.ndarray, place: np.ndarray, filled: np.ndarray, seq_len: int, max_padding: float, *, keep_first: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut pieces of the emptiest sequences to fill the next emptiest, until padding is within bounds.

    The emptiest have the least to give away, and the most room to receive: both need the fewest cuts.

    Returns:
        The pieces, their places, and which place stays open.
    """
    held: list[list[tuple[int, int, int]]] = [[] for _ in filled]
    for piece, where in zip(pieces.tolist(), place.tolist(), strict=True):
        held[where].append(piece)
    room = (seq_len - filled).tolist()
    emptiest = sorted(range(int(keep_first), len(filled)), key=lambda n: -room[n])
    giver, *rest = emptiest
    waiting = iter(([0] if keep_first else []) + rest)
    taker = next(waiting)
    closed, padding = len(filled) - 1, sum(room) - room[giver]
    while padding > max_padding * closed * seq_len:
        if not room[taker]:
            taker = next(waiting)
            continue
        document, offset, length = held[giver].pop()
        moved = min(length, room[taker])
        held[taker].append((document, offset, moved))
        room[taker] -= moved
        padding -= moved
        if moved < length:
            held[giver].append((document, offset + moved, length - moved))
        if not held[giver]:
            giver = next(waiting, taker)
            closed, padding = closed - 1, padding - room[giver]
    rows = [(piece, where) for where, inside in enumerate(held) for piece in inside]
    return np.array([piece for piece, _ in rows], PIECE), np.array([where for _, where in rows]), giver


def _shuffle(window: PackingWindow, first_stays: bool, seed: int, epoch: int, number: int) -> PackingWindow:
    """The sequences in an order by hash, since best fit begins with the longest; one that was open before stays first.

    So the pieces of an earlier epoch are used before those of the next.
    """
    head = min(int(first_stays), len(window.counts))
    order = np.concatenate([np.arange(head), head + shuffled(len(window.counts) - head, seed, epoch, number)])
    ends = np.cumsum(window.counts)
    counts = window.counts[order]
    starts = (ends - window.counts)[order]
    new_ends = np.cumsum(counts)
    index = np.arange(len(window.pieces)) + np.repeat(starts - new_ends + counts, counts)
    return PackingWindow(window.pieces[index], counts, window.pending)
