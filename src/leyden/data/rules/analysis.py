"""Words, lines and paragraphs of many texts at once, as arrays of positions; what repeats is found without hashes.

Words are what white space separates, as in ``str.split``; a letter of a script that is written without spaces (Han,
kana, Thai, Lao, Khmer, Burmese) is a word by itself together with its combining marks, so that rules which count words
mean something there. A word keeps its punctuation; its **core** is what is left between its first and last letter or
digit, and a word without one (a dash, a row of stars) is there but is not counted where a rule speaks of words.

Lines are what line feeds separate, without the white space around them (so CRLF is like LF); blank lines do not count.
Paragraphs are what blank lines separate.

Equal words, lines and n-grams are found by giving each its number in a dictionary (Arrow's, of their bytes; an n-gram
is the pair of its first n - 1 words' number and its last word's): exact, so no collision can change a decision.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from leyden.data.rules.characters import CLOSING, CORE, MARK, NEWLINE, SPACE, UNSPACED, table

CHUNK_CHARACTERS = 1 << 20
"""Characters analysed at once, that the arrays stay in the processor's caches; one text can be longer."""
_MOST_CLOSING = 8
"""Quotation marks, brackets and spaces that may stand behind what a line or word ends with."""


def chunks(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, in groups of about :data:`CHUNK_CHARACTERS`."""
    begin = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > CHUNK_CHARACTERS:
            yield texts[begin:index]
            begin, size = index, 0
        size += len(text)
    yield texts[begin:]


@dataclass(frozen=True)
class Spans:
    """Parts of the joined texts, in order.

    Attributes:
        first: [S] int64, where each begins.
        last: [S] int64, where it ends (exclusive).
        document: [S] int64, the index of its text, never falling.
    """

    first: np.ndarray
    last: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def length(self) -> np.ndarray:
        """[S] int64, characters."""
        return self.last - self.first


class Analysis:
    """The words, lines and paragraphs of some texts; each is worked out when first asked for.

    A text far longer than :data:`CHUNK_CHARACTERS` takes about 30 bytes a character while it is analysed in full.

    Args:
        texts: [D] strings.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._starts = np.cumsum([0, *map(len, texts)])

    @cached_property
    def joined(self) -> str:
        """All texts as one string of N characters."""
        return "".join(self.texts)

    @cached_property
    def characters(self) -> np.ndarray:
        """[N] uint8 if all are ASCII, else uint32: code points."""
        ascii_alone = self.joined.isascii()
        data = self.joined.encode("ascii" if ascii_alone else "utf-32-le")
        return np.frombuffer(data, np.uint8 if ascii_alone else np.uint32)

    @cached_property
    def kinds(self) -> np.ndarray:
        """[N] uint8, the flags of each character in :func:`leyden.data.rules.characters.table`."""
        return table()[self.characters]

    def __len__(self) -> int:
        return len(self.texts)

    def has(self, flag: int) -> np.ndarray:
        """[N] bool, the characters with a flag."""
        return (self.kinds & flag) != 0

    def sums(self, document: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """[D] float64: for each document how often it is in ``document`` [S], or the sum of its ``values`` [S]."""
        return np.bincount(document, values, minlength=len(self)).astype(np.float64)

    def per_document(self, places: np.ndarray) -> np.ndarray:
        """[D] float64, how many of ``places`` [P], rising indices of characters, are in each document."""
        return np.diff(np.searchsorted(places, self._starts)).astype(np.float64)

    @cached_property
    def words(self) -> Spans:
        """Every word, in order."""
        if not self.joined:
            nothing = np.zeros(0, np.int64)
            return Spans(nothing, nothing, nothing)
        written = ~self.has(SPACE)
        begins = written.copy()
        begins[1:] &= ~written[:-1]
        borders = self._starts[:-1][self._starts[:-1] < len(written)]
        begins[borders] = written[borders]
        if self.characters.dtype != np.uint8:  # no script of ASCII goes without spaces
            unspaced = self.has(UNSPACED)
            begins |= unspaced & ~self.has(MARK)
            begins[1:] |= self.has(CORE)[1:] & ~unspaced[1:] & ~self.has(MARK)[1:] & unspaced[:-1]
        ends = written.copy()
        ends[:-1] &= ~written[1:] | begins[1:]
        first = np.flatnonzero(begins)
        per_text = np.diff(np.searchsorted(first, self._starts))
        return Spans(first, np.flatnonzero(ends) + 1, np.repeat(np.arange(len(self)), per_text))

    @cached_property
    def word_flags(self) -> np.ndarray:
        """[W] uint8, all flags of the characters of each word (and of the white space behind it)."""
        return np.bitwise_or.reduceat(self.kinds, self.words.first) if len(self.words) else np.zeros(0, np.uint8)

    @cached_property
    def cores(self) -> Spans:
        """The core of each word that has one."""
        core = self.has(CORE)
        counted = (self.word_flags & CORE) != 0
        first, last = self.words.first[counted], self.words.last[counted]
        before = np.cumsum(core, dtype=np.int32)  # cores up to and with each character
        places = np.flatnonzero(core)
        return Spans(
            places[before[first] - core[first]], places[before[last - 1] - 1] + 1, self.words.document[counted]
        )

    @cached_property
    def word_ids(self) -> np.ndarray:
        """[W] int64, a number for each word, equal for equal words."""
        return _numbers(self.characters[~self.has(SPACE)], self.words.length)

    @cached_property
    def line_words(self) -> np.ndarray:
        """[L] int64, the first word of each line."""
        return np.flatnonzero(self._line_steps > 0)

    @cached_property
    def _line_steps(self) -> np.ndarray:
        """[W] int64, the line feeds between each word and the one before; at the first word of a text 2 at least."""
        if not len(self.words):
            return np.zeros(0, np.int64)
        number = np.cumsum(self.has(NEWLINE), dtype=np.int32)[self.words.first]
        other = np.diff(self.words.document, prepend=-1) != 0
        return np.where(other, 2, np.diff(number, prepend=0))

    @cached_property
    def lines(self) -> Spans:
        """Every line that is not blank, without the white space around it."""
        last_words = self.line_words + self.words_per_line - 1
        document = self.words.document[self.line_words]
        return Spans(self.words.first[self.line_words], self.words.last[last_words], document)

    @cached_property
    def line_ends(self) -> np.ndarray:
        """[L] int64, what each line ends with: see :meth:`ends`."""
        return self.ends(self.lines)

    def ends(self, spans: Spans) -> np.ndarray:
        """[S] int64, the last character of each part that is no closing quotation mark or bracket, nor white space.

        Behind the end of a sentence they may stand: ``."``, ``.”``, ``.)``, ``. »``, ``。」``. Up to eight are passed
        over, never the first character of a part.
        """
        last = spans.last - 1
        for _ in range(_MOST_CLOSING):
            passed = ((self.kinds[last] & (CLOSING | SPACE)) != 0) & (last > spans.first)
            if not passed.any():
                break
            last = last - passed
        return last

    @cached_property
    def words_per_line(self) -> np.ndarray:
        """[L] int64."""
        return np.diff(self.line_words, append=len(self.words))

    @cached_property
    def longest_words(self) -> np.ndarray:
        """[L] int64, the characters of the longest word of each line."""
        return np.maximum.reduceat(self.words.length, self.line_words) if len(self.words) else np.zeros(0, np.int64)

    @cached_property
    def line_ids(self) -> np.ndarray:
        """[L] int64, a number for each line, equal for equal lines."""
        border = np.zeros(len(self.characters) + 1, np.int8)
        border[self.lines.first] += 1
        border[self.lines.last] -= 1
        return _numbers(self.characters[np.cumsum(border, dtype=np.int8)[:-1] > 0], self.lines.length)

    @cached_property
    def paragraphs(self) -> Spans:
        """Every paragraph: spans of **lines**, not of characters."""
        first = np.flatnonzero(self._line_steps[self.line_words] > 1)
        return Spans(first, np.append(first, len(self.lines))[1:], self.lines.document[first])

    @cached_property
    def paragraph_ids(self) -> np.ndarray:
        """[P] int64, a number for each paragraph, equal for equal paragraphs."""
        return _numbers(self.line_ids, self.paragraphs.length)

    @cached_property
    def paragraph_characters(self) -> np.ndarray:
        """[P] int64, the characters of each paragraph's lines."""
        return np.add.reduceat(self.lines.length, self.paragraphs.first) if len(self.lines) else np.zeros(0, np.int64)


def _numbers(data: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[S] int64: the parts of ``data``, ``lengths`` [S] items each, numbered in the order that they first come in."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]) * data.itemsize
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(data))]
    return _encode(pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers))


def _encode(values: pa.Array) -> np.ndarray:
    return values.dictionary_encode().indices.to_numpy().astype(np.int64)


def repeats(document: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[S] bool: the parts that came before in the same document.

    Args:
        document: [S] int64.
        ids: [S] int64, not negative, equal for equal parts.
    """
    return ~_firsts(_encode(pa.array(document * (ids.max(initial=0) + 1) + ids)))


def _firsts(codes: np.ndarray) -> np.ndarray:
    """[S] bool: where each code comes for the first time; codes are numbered in that order."""
    return np.diff(np.maximum.accumulate(codes), prepend=-1) > 0


@dataclass(frozen=True)
class NGrams:
    """The n-grams of words that come more than once in their document, at each of their places.

    Attributes:
        n: words in each.
        place: [G] int64, the index of the first word, rising.
        code: [G] int64, equal for equal n-grams of one document, numbered in the order that they first come in.
    """

    n: int
    place: np.ndarray
    code: np.ndarray

    @cached_property
    def firsts(self) -> np.ndarray:
        """[G] bool, where an n-gram comes for the first time."""
        return _firsts(self.code)

    def top(self, document: np.ndarray) -> np.ndarray:
        """[G] bool: all places of the most frequent n-gram of each document, the earliest of equally frequent ones.

        Args:
            document: [W] int64, of each word.
        """
        if not len(self.place):
            return np.zeros(0, bool)
        counts = np.bincount(self.code)
        owner = document[self.place[self.firsts]]  # of each code
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        most = np.repeat(np.maximum.reduceat(counts, begins), np.diff(begins, append=len(owner)))
        best = np.flatnonzero(counts == most)
        best = best[np.diff(owner[best], prepend=-1) != 0]
        chosen = np.zeros(len(counts), bool)
        chosen[best] = True
        return chosen[self.code]


def ngrams(analysis: Analysis, most: int) -> Iterator[NGrams]:
    """The repeated n-grams for n = 2 to ``most``.

    Only where two repeated n-grams overlap in all but one word can a repeated (n + 1)-gram be, so each step looks at
    fewer places than the one before.
    """
    document, ids = analysis.words.document, analysis.word_ids
    if not len(ids):
        return
    base = ids.max() + 1
    place = np.flatnonzero(document[1:] == document[:-1])
    key = document[place] * base + ids[place]
    for n in range(2, most + 1):
        code = _encode(pa.array(key * base + ids[place + n - 1]))
        repeated = np.bincount(code, minlength=1)[code] > 1
        place, code = place[repeated], _encode(pa.array(code[repeated]))
        yield NGrams(n, place, code)
        chained = np.flatnonzero(np.diff(place) == 1)
        place, key = place[chained], code[chained]


def covered(places: np.ndarray, n: int, num_words: int) -> np.ndarray:
    """[W] bool: the words in any of the n-grams that begin at ``places`` [G]."""
    inside = np.zeros(num_words, bool)
    for shift in range(n):
        inside[places + shift] = True
    return inside
