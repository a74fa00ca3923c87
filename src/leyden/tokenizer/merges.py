"""Learning merges: byte-pair encoding over counted words, with counts of 64 bits (Sennrich et al., arXiv 1508.07909).

One merge at a time, the rule is: the commonest pair of neighbouring tokens becomes a token; of equally common pairs,
the one with the smaller ids. Here many merges are done at once, with the same result. Of the pairs in that order, take
the longest prefix in which no pair begins with a token that another ends with. Those pairs never overlap in a word, so
none changes another's count; and what merging them makes (``(x, ab)``, no commoner than ``(x, a)``, which comes after
the prefix) cannot come before any of them, nor by its ids, since a new token's is the largest. So one merge at a time
would have taken exactly these, in this order.

All distinct words lie in one array of tokens, linked to their neighbours. A pair comes about only when the younger of
its tokens does, so its list of places is complete when it is made, and from then on only grows stale.

No two merges make the same bytes. Let ``l`` and ``r`` be neighbours in a word: what was merged so far inside ``lr`` was
merged there in the same order as if ``lr`` were a word by itself, since nothing was merged across its ends. So the text
of a token is always in the same two parts before it is whole; once those are merged, no other two come about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_ACTIVE = 1024
"""Pairs kept sorted at a time. More cost sorting, fewer cost more searches for the next best."""
_NONE = -1
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Merges:
    """A learnt vocabulary.

    Attributes:
        tokens: the bytes of each token, by id: first the single bytes, as given.
        pairs: the merges in order, each a pair of ids.
        counts: [merges] int64, how often each pair occurred when it was merged.
        lengths: [W] int64, the tokens that each word came to.
    """

    tokens: list[bytes]
    pairs: list[tuple[int, int]]
    counts: np.ndarray
    lengths: np.ndarray


def learn(
    words: Sequence[bytes],
    counts: np.ndarray,
    num_tokens: int,
    *,
    alphabet: Sequence[bytes],
    min_count: int = 2,
    advance: Callable[[int], None] = lambda _: None,
) -> Merges:
    """Merge until there are ``num_tokens`` tokens, or no pair is left that occurs ``min_count`` times.

    Memory is about 60 bytes for each byte of the distinct words.

    Args:
        words: [W], distinct, not empty.
        counts: [W] int64, how often each word occurs; their sum over all bytes must stay below 2^63.
        num_tokens: the alphabet counts.
        alphabet: [256], the single bytes in the order of their ids.
        min_count: pairs rarer than this stay apart.
        advance: told of every batch of tokens made.
    """
    text = _Text(words, counts, alphabet)
    queue = _Queue(text, num_tokens, min_count)
    tokens, pairs, found = list(alphabet), [], []
    while len(tokens) < num_tokens and len(slots := queue.best(num_tokens - len(tokens))):
        new = text.split(slots)
        found.append(text.counts[slots])
        queue.add(text.merge(slots, first_id=len(tokens)))
        tokens += [tokens[left] + tokens[right] for left, right in new]
        pairs += new
        advance(len(new))
    return Merges(tokens, pairs, np.concatenate([np.zeros(0, np.int64), *found]), text.num_tokens(len(words)))


class _Growing:
    """An array that is appended to."""

    def __init__(self, values: np.ndarray) -> None:
        self._array = values
        self._size = len(values)

    def append(self, values: np.ndarray) -> None:
        end = self._size + len(values)
        if end > len(self._array):
            grown = np.empty(max(end, len(self._array) * 3 // 2), self._array.dtype)
            grown[: self._size] = self._array[: self._size]
            self._array = grown
        self._array[self._size : end] = values
        self._size = end

    @property
    def values(self) -> np.ndarray:
        """A view."""
        return self._array[: self._size]


class _Text:
    """All distinct words as linked tokens, and every pair of neighbours ("slot") with its count and places.

    A place is the index of the pair's first token. Lists of places are never shortened: one is stale where the slot of
    the place has become another.
    """

    def __init__(self, words: Sequence[bytes], counts: np.ndarray, alphabet: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        total = int(lengths.sum())
        spelling = np.empty(256, np.int32)
        spelling[[token[0] for token in alphabet]] = np.arange(256, dtype=np.int32)
        self._token = spelling[np.frombuffer(b"".join(words), np.uint8)]
        self._word = np.repeat(np.arange(len(words), dtype=np.int32), lengths)
        self._weights = np.asarray(counts, np.int64)
        ends = np.cumsum(lengths)
        self._right = np.arange(1, total + 1, dtype=np.int32)
        self._right[ends - 1] = _NONE
        self._left = np.arange(-1, total - 1, dtype=np.int32)
        self._left[ends - lengths] = _NONE
        self._slot = np.full(total, _NONE, np.int32)
        self._keys = _Growing(np.zeros(0, np.int64))
        self._counts = _Growing(np.zeros(0, np.int64))
        self._starts = _Growing(np.zeros(0, np.int64))
        self._sizes = _Growing(np.zeros(0, np.int64))
        self._places = _Growing(np.zeros(0, np.int32))
        self._add_slots(np.flatnonzero(self._right != _NONE).astype(np.int32))

    @property
    def keys(self) -> np.ndarray:
        """[slots] int64, each pair as first id * 2^32 + second id."""
        return self._keys.values

    @property
    def counts(self) -> np.ndarray:
        """[slots] int64, how often each pair occurs now."""
        return self._counts.values

    def num_tokens(self, num_words: int) -> np.ndarray:
        """[num_words] int64, the tokens of each word."""
        return np.bincount(self._word[self._token != _NONE], minlength=num_words)

    def split(self, slots: np.ndarray) -> list[tuple[int, int]]:
        """The ids of each slot."""
        keys = self.keys[slots]
        return list(zip((keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist(), strict=True))

    def merge(self, slots: np.ndarray, first_id: int) -> np.ndarray:
        """Merge every occurrence of ``slots`` [k] into the tokens from ``first_id`` on; returns the new slots."""
        places, owner = self._occurrences(slots)
        if len(slots) == 1 and self.keys[slots[0]] >> 32 == self.keys[slots[0]] & 0xFFFFFFFF:
            places = self._every_other(places)
            owner = owner[: len(places)]
        seconds = self._right[places]
        after = self._right[seconds]
        self._forget(seconds[after != _NONE])
        before = self._left[places]
        before = before[before != _NONE]
        self._forget(before[self._slot[before] != _NONE])
        self._counts.values[slots] = 0
        self._slot[places] = _NONE
        self._token[places] = first_id + owner
        self._token[seconds] = _NONE
        self._right[places] = after
        inner = after != _NONE
        self._left[after[inner]] = places[inner]
        before = self._left[places]
        before = before[before != _NONE]
        old = before[self._token[before] < first_id]  # the others are among the places
        return self._add_slots(np.concatenate((places[inner], old)))

    def _occurrences(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where ``slots`` [k] are now [n], and which of the k each is [n]."""
        sizes = self._sizes.values[slots]
        owner = np.repeat(np.arange(len(slots)), sizes)
        offsets = self._starts.values[slots] - (np.cumsum(sizes) - sizes)
        places = self._places.values[np.arange(len(owner)) + offsets[owner]]
        here = self._slot[places] == slots[owner]
        return places[here], owner[here]

    def _every_other(self, places: np.ndarray) -> np.ndarray:
        """Of a token's pairs with itself in runs of it, those that merge from the left."""
        places = np.sort(places)
        begins = np.ones(len(places), bool)
        begins[1:] = self._right[places[:-1]] != places[1:]
        index = np.arange(len(places))
        return places[(index - np.maximum.accumulate(np.where(begins, index, 0))) % 2 == 0]

    def _forget(self, places: np.ndarray) -> None:
        """Take the pairs at ``places`` (each once) out of the counts."""
        np.subtract.at(self._counts.values, self._slot[places], self._weights[self._word[places]])
        self._slot[places] = _NONE

    def _add_slots(self, places: np.ndarray) -> np.ndarray:
        """Count the pairs at ``places``, all of them new, and give each a slot."""
        first = self._token[places].astype(np.int64)
        keys = first << 32 | self._token[self._right[places]]
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        begins = np.flatnonzero(np.diff(keys, prepend=_NONE))
        sizes = np.diff(begins, append=len(keys))
        slots = len(self.keys) + np.arange(len(begins))
        self._starts.append(len(self._places.values) + begins)
        self._sizes.append(sizes)
        self._places.append(places)
        self._keys.append(keys[begins])
        weights = self._weights[self._word[places]]
        self._counts.append(np.add.reduceat(weights, begins) if len(begins) else weights)
        self._slot[places] = np.repeat(slots, sizes)
        return slots


class _Queue:
    """The slots in order of merging. The best few are kept; the rest is looked through when those are used up."""

    def __init__(self, text: _Text, num_tokens: int, min_count: int) -> None:
        self._text = text
        self._min_count = min_count
        self._active = np.zeros(0, np.int64)
        self._last = (np.iinfo(np.int64).max, 0)  # count and key of the last slot that is among the best
        self._begins = np.full(max(num_tokens, 256), _NEVER)  # the first pair that begins, or ends, with a token
        self._ends = self._begins.copy()

    def add(self, slots: np.ndarray) -> None:
        """New slots."""
        self._active = np.concatenate((self._active, slots[self._among_best(slots)]))

    def best(self, most: int) -> np.ndarray:
        """The longest prefix of the order in which no pair begins with a token that another ends with."""
        self._active = self._active[self._among_best(self._active)]
        if not len(self._active):
            self._refill()
        keys = self._text.keys[self._active]
        order = np.lexsort((keys, -self._text.counts[self._active]))[:most]
        return self._active[order[: self._free_prefix(keys[order])]]

    def _among_best(self, slots: np.ndarray) -> np.ndarray:
        counts = self._text.counts[slots]
        count, key = self._last
        return (counts > count) | ((counts == count) & (self._text.keys[slots] <= key))

    def _refill(self) -> None:
        slots = np.flatnonzero(self._text.counts >= self._min_count)
        if len(slots) > _ACTIVE:
            counts = self._text.counts[slots]
            count = np.partition(counts, -_ACTIVE)[-_ACTIVE]
            equal = self._text.keys[slots[counts == count]]
            rank = _ACTIVE - 1 - int((counts > count).sum())
            self._last = (int(count), int(np.partition(equal, rank)[rank]))
            slots = slots[self._among_best(slots)]
        else:
            self._last = (self._min_count, np.iinfo(np.int64).max)
        self._active = slots

    def _free_prefix(self, keys: np.ndarray) -> int:
        """How many of ``keys`` come before the first that shares a token, as end and beginning, with an earlier one."""
        firsts, seconds = keys >> 32, keys & 0xFFFFFFFF
        if not len(keys) or firsts[0] == seconds[0]:
            return min(len(keys), 1)
        index = np.arange(len(keys))
        self._begins[firsts[::-1]] = index[::-1]
        self._ends[seconds[::-1]] = index[::-1]
        clash = (self._ends[firsts] <= index) | (self._begins[seconds] < index)  # <=: a token with itself
        self._begins[firsts] = self._ends[seconds] = _NEVER
        return int(clash.argmax()) if clash.any() else len(keys)
