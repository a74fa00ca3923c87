"""What all drafters share: which sequences, how many guesses, and the acceptance rate."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from leyden.serve.sampling import Sampler

_LONGEST_REST = 32
"""Steps after which guesses are tried again, however often they failed."""


@dataclass(frozen=True)
class Ask:
    """A sequence whose next tokens are to be guessed.

    Attributes:
        id: of the sequence; unique among those not yet forgotten.
        tokens: all of it, prompt and output. It only ever grows from one ask to the next.
        limit: guesses that there is use for.
        sampler: which will draw the tokens. None: the most probable ones are taken.
    """

    id: str
    tokens: Sequence[int]
    limit: int
    sampler: Sampler | None = None


@dataclass
class GuessPace:
    """How much to guess for one sequence, from how the last guesses went.

    A guess that was right throughout doubles the next; else it is one longer than what was right. Each failure in a
    row doubles the steps that pass without a guess, since a wrong one costs the step a row for nothing.
    """

    length: int = 4
    failures: int = 0
    rest: int = 0
    guess: list[int] = field(default_factory=list)
    behind: int = 0

    def judge(self, tokens: Sequence[int]) -> tuple[int, int]:
        """How many tokens were guessed the last time, and how many of them ``tokens`` show to be right."""
        guess, self.guess = self.guess, []
        if not guess:
            return 0, 0
        came = tokens[self.behind : self.behind + len(guess)]
        right = next((i for i, pair in enumerate(zip(guess, came, strict=False)) if pair[0] != pair[1]), len(came))
        self.failures = 0 if right else self.failures + 1
        self.rest = min(2**self.failures, _LONGEST_REST) - 1
        self.length = 2 * len(guess) if right == len(guess) else right + 1
        return len(guess), right

    def limit(self, most: int) -> int:
        """How many tokens to guess now, at most ``most``."""
        if self.rest:
            self.rest -= 1
            return 0
        return max(0, min(self.length, most))


class Guesser(ABC):
    """A source of guesses, for any number of sequences.

    Attributes:
        proposed, accepted: tokens guessed, and those of them that were right, as far as it is known.
    """

    def __init__(self) -> None:
        self.proposed = 0
        self.accepted = 0
        self._paces: dict[str, GuessPace] = {}

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Guess the next tokens of each sequence: at most its limit, fewer where guesses fail, possibly none."""
        limited = []
        for ask in asks:
            pace = self._paces.setdefault(ask.id, GuessPace())
            proposed, right = pace.judge(ask.tokens)
            self.proposed += proposed
            self.accepted += right
            limited.append(replace(ask, limit=pace.limit(ask.limit)))
        guesses = self._guess(limited)
        for ask, guess in zip(asks, guesses, strict=True):
            pace = self._paces[ask.id]
            pace.guess, pace.behind = guess, len(ask.tokens)
        return guesses

    def forget(self, id: str) -> None:
        """The sequence has ended, or will be read anew; one that is unknown is no error."""
        self._paces.pop(id, None)

    @abstractmethod
    def _guess(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Of each sequence at most ``limit`` tokens; the limit may be 0."""
