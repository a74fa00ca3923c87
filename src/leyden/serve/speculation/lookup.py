"""Prompt lookup decoding: guesses are what followed the same tokens earlier in the text.

Prompt look-up (Saxena 2023; in transformers as ``prompt_lookup_num_tokens``): it costs no model, and is right where a
text repeats its prompt or itself, as in edits, summaries with quotations, code and tables.
"""

from array import array
from collections.abc import Sequence

from leyden.serve.speculation.guesser import Ask, Guesser

_SHORTEST = 3
"""Tokens that must agree. Two agree by chance too often."""
_LONGEST = 16
"""Tokens that are compared."""
_CANDIDATES = 16
"""Earlier places that are compared, from the most recent back."""


class TextIndex:
    """Where each run of three tokens of a text stood last, and where before that, as in LZ77's hash chains.

    A look-up takes microseconds, whatever the length of the text; each token is indexed once.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], int] = {}
        self._earlier = array("q", [-1] * (_SHORTEST - 1))  # of the run that ends at each token, the one before it

    def following(self, tokens: Sequence[int], limit: int) -> list[int]:
        """What followed the longest match of the end of ``tokens``, the most recent of equally long ones.

        Args:
            tokens: the text; that of the last call, and more.
            limit: tokens wanted. A match that overlaps the end goes on in its own repetition.
        """
        for end in range(len(self._earlier), len(tokens) - 1):
            run = tuple(tokens[end - _SHORTEST + 1 : end + 1])
            self._earlier.append(self._last.get(run, -1))
            self._last[run] = end
        if limit < 1 or len(tokens) <= _SHORTEST:
            return []
        end = self._best(tokens)
        if end < 0:
            return []
        guess = list(tokens[end + 1 : end + 1 + limit])
        period = len(tokens) - 1 - end
        while len(guess) < limit:
            guess.append(guess[len(guess) - period])
        return guess

    def _best(self, tokens: Sequence[int]) -> int:
        """Where the longest match ends; -1 for none."""
        recent = tokens[-_LONGEST:][::-1]
        place = self._last.get(tuple(tokens[-_SHORTEST:]), -1)
        best, longest = -1, _SHORTEST - 1
        for _ in range(_CANDIDATES):
            if place < 0:
                break
            length = _SHORTEST
            while length < min(len(recent), place + 1) and tokens[place - length] == recent[length]:
                length += 1
            if length > longest:
                best, longest = place, length
            if length == _LONGEST:
                break
            place = self._earlier[place]
        return best


class PromptLookup(Guesser):
    """Looks up the end of each sequence in the sequence itself."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[str, TextIndex] = {}

    def forget(self, id: str) -> None:
        """See :meth:`Guesser.forget`."""
        super().forget(id)
        self._texts.pop(id, None)

    def _guess(self, asks: Sequence[Ask]) -> list[list[int]]:
        return [self._texts.setdefault(ask.id, TextIndex()).following(ask.tokens, ask.limit) for ask in asks]
