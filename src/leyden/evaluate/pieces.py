"""Endless pieces of generated text with their tokens, tokenised once and no further than they are needed."""

import bisect
import itertools
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np

from leyden.tokenizer import Tokenizer

_T = TypeVar("_T")
_AT_ONCE = 256
"""Pieces that are tokenised together."""


class Pieces(Generic[_T]):
    """A growing list of what ``source`` gives, each piece by itself as tokens.

    Args:
        tokenizer: of the model.
        source: without end.
        words: the text of a piece.

    Attributes:
        items: the pieces so far.
        tokens: of each, int32.
    """

    def __init__(self, tokenizer: Tokenizer, source: Iterator[_T], words: Callable[[_T], str]) -> None:
        self._tokenizer, self._source, self._words = tokenizer, source, words
        self.items: list[_T] = []
        self.tokens: list[np.ndarray] = []
        self._ends: list[int] = []

    def fitting(self, room: int, start: int = 0, around: int = 0) -> range:
        """Which pieces in a row fit ``room`` tokens, from the ``start``-th token on.

        Args:
            room: tokens.
            start: of all pieces, as tokens; the piece that holds it is the first.
            around: so many more tokens for each piece.
        """
        while not self._ends or self._ends[-1] <= start:
            self._read()
        begin = end = bisect.bisect_right(self._ends, start)
        while True:
            if end == len(self.items):
                self._read()
            room -= len(self.tokens[end]) + around
            if room < 0:
                return range(begin, end)
            end += 1

    def _read(self) -> None:
        items = list(itertools.islice(self._source, _AT_ONCE))
        tokens = self._tokenizer.encode_batch([self._words(item) for item in items])
        before = self._ends[-1] if self._ends else 0
        self._ends += [before + end for end in accumulate(map(len, tokens))]
        self.items += items
        self.tokens += tokens
