"""Word counts: how often each pre-tokenised piece occurs, by language and domain, in unbounded integers.

Splitting is slow and words repeat, so text is first cut into coarser chunks (:data:`_CHUNK`), at places where the split
always has a border whatever stands around; chunks are counted, and only the distinct ones are split.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Self

import numpy as np

from leyden.core.errors import UserError
from leyden.tokenizer.bpe import split_text

MAX_WORDS = 2_000_000
"""Distinct words held at once, of all languages; about 200 bytes of memory each."""

_MAX_CHUNKS = 500_000
_MAX_CHARACTERS = 4_000_000  # of one text cut into chunks at once
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space; Python's own has more
# A border lies between what is not white space and white space; but line breaks and slashes stay with punctuation.
_CHUNK = re.compile(rf"[{_SPACE}]*[^{_SPACE}]+(?:(?<![^\W_])[\r\n/]+)?|[{_SPACE}]+")
_STARTS_WITH_SPACE = re.compile(rf"[{_SPACE}]")
_ALL_SPACE = re.compile(rf"[{_SPACE}]+\Z")
_JOINED_CHARACTERS = 1 << 16  # split at once


class WordGroup(NamedTuple):
    """What is counted apart: a language (a code, or a programming language) and a domain (where text is from)."""

    language: str = ""
    domain: str = ""


@dataclass
class Sizes:
    """How much text there is of a group.

    Attributes:
        num_documents: texts.
        num_bytes: in UTF-8.
        num_spaced: words in the plain sense: what white space divides.
    """

    num_documents: int = 0
    num_bytes: int = 0
    num_spaced: int = 0

    def add(self, text: str) -> None:
        """Count a text.

        Raises:
            UserError: it holds a lone surrogate.
        """
        self.num_bytes += num_bytes(text)
        self.num_documents += 1
        self.num_spaced += len(text.split())

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(
            self.num_documents + other.num_documents,
            self.num_bytes + other.num_bytes,
            self.num_spaced + other.num_spaced,
        )


@dataclass
class WordCounts:
    """How often each word occurs in each group. Add texts, then read :attr:`words`.

    Attributes:
        max_words: where there are more distinct words, the rarest are forgotten (and may be counted anew later).
        sizes: how much text there is of each group.
        forgotten: occurrences of words that were forgotten.
        undercount: no count is further below the truth than this.
    """

    max_words: int = MAX_WORDS
    sizes: dict[WordGroup, Sizes] = field(default_factory=dict)
    forgotten: int = 0
    undercount: int = 0
    _words: dict[WordGroup, Counter[str]] = field(default_factory=dict)
    _chunks: dict[WordGroup, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str], group: WordGroup = WordGroup(), max_words: int = MAX_WORDS) -> Self:  # noqa: B008
        """The words of ``texts``.

        Raises:
            UserError: a text holds a lone surrogate.
        """
        counts = cls(max_words)
        for text in texts:
            counts.add(text, group)
        return counts

    @classmethod
    def of_counts(cls, words: Mapping[str, int], group: WordGroup = WordGroup()) -> Self:  # noqa: B008
        """Words that were counted elsewhere: pieces as :func:`leyden.tokenizer.bpe.split_text` gives them."""
        counts = cls(max(MAX_WORDS, len(words)))
        counts._words[group] = Counter(words)
        counts.sizes[group] = Sizes(num_bytes=sum(num_bytes(word) * count for word, count in words.items()))
        return counts

    def add(self, text: str, group: WordGroup = WordGroup()) -> None:  # noqa: B008
        """Count one text.

        Raises:
            UserError: it holds a lone surrogate.
        """
        self.sizes.setdefault(group, Sizes()).add(text)
        if len(text) <= _MAX_CHARACTERS:
            self._count(_CHUNK.findall(text), group)
            return
        matches = _CHUNK.finditer(text)
        while some := [match[0] for match in islice(matches, _MAX_CHARACTERS // 8)]:
            self._count(some, group)

    def update(self, other: "WordCounts") -> None:
        """Add what another has counted."""
        other._settle(0)
        self._settle(0)
        for group, words in other._words.items():
            self._words.setdefault(group, Counter()).update(words)
        for group, sizes in other.sizes.items():
            self.sizes[group] = self.sizes.get(group, Sizes()) + sizes
        self.forgotten += other.forgotten
        self.undercount += other.undercount
        self._forget_rarest()

    @property
    def words(self) -> Mapping[WordGroup, Mapping[str, int]]:
        """Each group's words and how often they occur."""
        self._settle(0)
        return self._words

    @property
    def total(self) -> Sizes:
        """How much text there is in all."""
        return sum(self.sizes.values(), Sizes())

    def by_language(self) -> dict[str, Counter[str]]:
        """Each language's words, of all domains."""
        found: dict[str, Counter[str]] = {}
        for group, words in sorted(self.words.items()):
            found.setdefault(group.language, Counter()).update(words)
        return found

    def _count(self, chunks: list[str], group: WordGroup) -> None:
        self._chunks.setdefault(group, Counter()).update(chunks)
        self._settle(_MAX_CHUNKS)

    def _settle(self, max_chunks: int) -> None:
        """Split the chunks into words, where there are more than ``max_chunks``."""
        if sum(map(len, self._chunks.values())) <= max_chunks:
            return
        for group, chunks in self._chunks.items():
            words = self._words.setdefault(group, Counter())
            for count, some in _by_count(chunks).items():
                for word, times in _split_chunks(some).items():
                    words[word] += count * times
        self._chunks = {}
        self._forget_rarest()

    def _forget_rarest(self) -> None:
        """Keep at most three quarters of ``max_words`` once there are more: those above some count."""
        num_words = sum(map(len, self._words.values()))
        if num_words <= self.max_words:
            return
        spread = Counter(count for words in self._words.values() for count in words.values())
        bound = 0
        for bound in sorted(spread):
            num_words -= spread[bound]
            if num_words <= self.max_words * 3 // 4:
                break
        self.forgotten += sum(count * times for count, times in spread.items() if count <= bound)
        self.undercount += bound
        for group, words in self._words.items():
            self._words[group] = Counter({word: count for word, count in words.items() if count > bound})


def table(by_language: Mapping[str, Mapping[str, int]]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The distinct words [W], sorted, and how often each occurs in each language, [W] int64.

    Raises:
        UserError: a count does not fit 64 bits.
    """
    distinct = sorted(set().union(*by_language.values()))
    try:
        return distinct, {
            language: np.fromiter((words.get(word, 0) for word in distinct), np.int64, len(distinct))
            for language, words in by_language.items()
        }
    except OverflowError:
        raise UserError("A word occurs more than 2^63 times, which does not fit 64 bits; take a sample.") from None


def num_bytes(text: str) -> int:
    """UTF-8 bytes of ``text``.

    Raises:
        UserError: it holds a lone surrogate.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(
            f"The text holds a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}: half of a "
            "character, which no encoding can carry. Replace it, or read the text again from its bytes."
        ) from None


def _by_count(chunks: Mapping[str, int]) -> dict[int, list[str]]:
    """The chunks that occur once, twice, ..."""
    groups: dict[int, list[str]] = {}
    for chunk, count in chunks.items():
        groups.setdefault(count, []).append(chunk)
    return groups


def _split_chunks(chunks: list[str]) -> Counter[str]:
    """How often each word occurs in ``chunks``, each taken once.

    Chunks are split many at a time, with something between them that keeps them apart: after a letter comes a border
    before any white space, and after its line break one before anything else.
    """
    words: Counter[str] = Counter()
    groups: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for chunk in chunks:
        if _ALL_SPACE.match(chunk):
            words.update(split_text(chunk))
        else:
            separator = (" a",) if _STARTS_WITH_SPACE.match(chunk) else (" a", "\n")
            groups.setdefault((separator, chunk.isascii()), []).append(chunk)
    for (separator, _), group in groups.items():
        for some in _portions(group):
            words.update(split_text("".join(separator).join(some)))
            words.subtract(dict.fromkeys(separator, len(some) - 1))
    return +words


def _portions(chunks: list[str]) -> Iterator[list[str]]:
    """``chunks`` in lists of about 64 thousand characters."""
    begin = size = 0
    for end, chunk in enumerate(chunks, 1):
        size += len(chunk)
        if size >= _JOINED_CHARACTERS or end == len(chunks):
            yield chunks[begin:end]
            begin, size = end, 0
