"""RULER's two tasks of counting: the words that a list repeats most, and the most frequent words of a coded text."""

import math
import random
import string

import numpy as np

from leyden.evaluate.tasks.ruler.draft import Draft, Materials, Sample
from leyden.evaluate.tasks.ruler.words import ADJECTIVES, NOUNS

_POOL = (*ADJECTIVES, *NOUNS)
_COMMON = 10
_SHORT = 4096
"""Below this length the authors' lists repeat words less often."""
_ALPHA = 2.0
_ZETA = math.pi**2 / 6
"""The Riemann zeta function of ``_ALPHA``."""
_CODED_LETTERS = 6
_TOKENS_PER_CODED_WORD = 50
_FEWEST_CODED_WORDS = 5
_ANSWER_TOKENS = 50
"""Of the coded words; the authors take them off the length before they count words."""


def draft_common_words(materials: Materials, sample: Sample) -> Draft:
    """Ten words stand in a numbered list 30 times each, all others 3 times (6 and 1 below 4,096 tokens)."""
    repeats, example_repeats, example_words = ((6, 1), (3, 1), 20) if sample.length < _SHORT else ((30, 3), (10, 3), 40)
    head = (
        "The words of the numbered list below repeat, some of them more often than the others. Remember those that "
        "occur most often.\n"
    )
    tail = "\nQuestion: Which 10 words occur most often in the list?"
    begun = " Answer: The 10 words that occur most often in the list are:"
    common, shown = _example(materials, example_words, example_repeats)
    answer = " ".join(f"{number}. {word}" for number, word in enumerate(common, 1))
    words = _WordList(materials, sample.draws.getrandbits(64), repeats)
    return Draft(
        head=f"{head}{shown}{tail}{begun} {answer}\n{head}",
        tail=tail,
        begun=begun,
        least_tokens=words.least_tokens,
        fill=words.fill,
    )


def draft_frequent_words(materials: Materials, sample: Sample) -> Draft:
    """Made-up words whose counts fall with the square of their rank; the first rank is dots, the next three count."""
    count = max(_FEWEST_CODED_WORDS, (sample.length - _ANSWER_TOKENS) // _TOKENS_PER_CODED_WORD)
    words: dict[str, None] = {"...": None}
    while len(words) < count:
        words["".join(sample.draws.choices(string.ascii_lowercase, k=_CODED_LETTERS))] = None
    vocabulary = list(words)
    seed = sample.draws.getrandbits(64)
    pieces = materials.encode_spaced(vocabulary)
    sizes = np.array([len(piece) for piece in pieces])
    shares = np.arange(1, len(vocabulary) + 1, dtype=np.float64) ** -_ALPHA / _ZETA

    def counts(total: int) -> np.ndarray:
        return np.floor(total * shares).astype(np.int64)

    def fill(room: int) -> tuple[np.ndarray, tuple[str, ...]]:
        low, high = 0, room + 1  # the most words that fit: `low` do, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if counts(middle) @ sizes <= room else (low, middle)
        ranks = np.repeat(np.arange(len(vocabulary)), counts(low)).tolist()
        random.Random(seed).shuffle(ranks)
        return np.concatenate([pieces[rank] for rank in ranks]), tuple(vocabulary[1:4])

    return Draft(
        head="The text below is made of code words. Count how often each occurs, and find the three that occur most "
        "often.",
        tail="\nQuestion: Which three code words occur most often in the text? The dots '....' are no word. Name the "
        "words alone, without an explanation.",
        begun=" Answer: The three code words that occur most often in the text are:",
        least_tokens=int(counts(_distinct_total(shares)) @ sizes),
        fill=fill,
    )


def _distinct_total(shares: np.ndarray) -> int:
    """So many words that the fourth rank's count is above the fifth's: from there on there is one answer."""
    total = 1
    while math.floor(total * shares[3]) == math.floor(total * shares[4]):
        total += 1
    return total


class _WordList:
    """The numbered list, of as many different words as fit."""

    def __init__(self, materials: Materials, seed: int, repeats: tuple[int, int]) -> None:
        self._materials, self._seed, self._repeats = materials, seed, repeats
        longest = sorted(map(len, _words(materials)))[-_COMMON:]
        listed = _COMMON * repeats[0]
        self.least_tokens = repeats[0] * sum(longest) + sum(map(len, _numbers(materials, listed)[:listed]))

    def fill(self, room: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Single words while there are enough for the room, otherwise pairs of them."""
        draws = random.Random(self._seed)
        pool, pieces = list(_POOL), _words(self._materials)
        chosen = draws.sample(range(len(pool)), len(pool))
        count = self._fitting([len(pieces[at]) for at in chosen], room)
        if count == len(pool):
            pool, pieces = self._pairs(draws, room)
            chosen = list(range(len(pool)))
            count = self._fitting([len(piece) for piece in pieces], room)
        often, seldom = self._repeats
        listed = chosen[:_COMMON] * often + chosen[_COMMON:count] * seldom
        draws.shuffle(listed)
        numbers = _numbers(self._materials, len(listed))
        parts = [part for number, word in zip(numbers, listed, strict=False) for part in (number, pieces[word])]
        return np.concatenate(parts), tuple(pool[word] for word in chosen[:_COMMON])

    def _pairs(self, draws: random.Random, room: int) -> tuple[list[str], list[np.ndarray]]:
        """Different pairs of words with a hyphen between, as many as the room could hold, and their tokens."""
        size, firsts = len(_POOL), _words(self._materials)
        seconds = self._materials.keep("second words", lambda: [f"-{word}" for word in _POOL])
        shortest = min(map(len, firsts)) + min(map(len, seconds)) + 1
        count = min(size * size, _COMMON + room // (shortest * self._repeats[1]))
        both = [divmod(pair, size) for pair in draws.sample(range(size * size), count)]
        pieces = [np.concatenate([firsts[first], seconds[second]]) for first, second in both]
        return [f"{_POOL[first]}-{_POOL[second]}" for first, second in both], pieces

    def _fitting(self, sizes: list[int], room: int) -> int:
        """How many different words of these sizes fit with their numbers, at least the ten."""
        often, seldom = self._repeats
        repeats = np.where(np.arange(len(sizes)) < _COMMON, often, seldom)
        words = np.cumsum(repeats * sizes)
        most = max(_COMMON, int(np.searchsorted(words, room, side="right")))  # without their numbers
        listed = np.cumsum(repeats[:most])
        numbers = np.cumsum([len(number) for number in _numbers(self._materials, int(listed[-1]))])
        return max(_COMMON, int(np.searchsorted(words[:most] + numbers[listed - 1], room, side="right")))


def _example(materials: Materials, count: int, repeats: tuple[int, int]) -> tuple[list[str], str]:
    """A solved list that all samples share."""
    draws = random.Random(f"ruler {materials.seed} cwe example")
    words = draws.sample(_POOL, count)
    common, others = words[:_COMMON], words[_COMMON:]
    listed = common * repeats[0] + others * repeats[1]
    draws.shuffle(listed)
    return common, " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))


def _words(materials: Materials) -> list[np.ndarray]:
    """The single words as tokens, each with the space before it."""
    return materials.keep_spaced("words", lambda: _POOL)


def _numbers(materials: Materials, count: int) -> list[np.ndarray]:
    """`` 1.``, `` 2.``, ... as tokens: at least so many."""
    size = 1 << max(10, (count - 1).bit_length())
    return materials.keep_spaced(f"numbers {size}", lambda: [f"{number}." for number in range(1, size + 1)])
