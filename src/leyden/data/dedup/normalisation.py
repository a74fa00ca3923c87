"""What of a text counts when two are compared: all but case and white space, or its words.

``folded`` is for what is called equal: it leaves every letter, digit, mark and sign in place. ``normalised`` is for
what is called near: it makes words of a text, of which n-grams are compared.
"""

import functools
import itertools
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from leyden.data.documents import Documents, pc
from leyden.data.engine import daft

_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\pM*)"
"""A character, with its marks, of a script that is written without spaces between words."""

_LETTER, _DIGIT, _DASH, _MARK = 1, 2, 3, 4
_OPERATORS = "*/%&@#\\＊／％＆＠＃＼‰‱٪′″"
"""Punctuation to Unicode that computes, counts or measures: it stays, as symbols do."""
_QUOTES = "`´"
"""Symbols to Unicode that quote."""
_MINUS = "−"
_SPACE, _HYPHEN, _POINT, _NOT, _EQUALS = map(ord, " -.!=")


def texts_of(documents: Documents) -> pa.Array:
    """[D] large strings: the text of each document, or the contents of its messages with empty lines between them."""
    texts = documents.table.column("text")
    if texts.null_count:
        return pa.array(documents.texts(), pa.large_string())
    return pa.concat_arrays(texts.chunks) if texts.num_chunks else pa.array([], pa.large_string())


def folded(texts: pa.Array) -> pa.Array:
    """[D] large strings, texts in lower case, each run of white space one space, none at the ends.

    Two texts are equal then if they differ in case (by Unicode's lower-case mapping) and in the kind and amount of
    white space at most. Whether there is white space between two characters counts.
    """
    return _normalise(texts, lowercase=True, nfd_unicode=False, white_space=True)


def normalised(texts: pa.Array) -> pa.Array:
    """[D] large strings, the words of texts, parted by single spaces: in lower case and Unicode's form NFD.

    Punctuation parts words, and is no part of them: ``Cat.`` is ``cat``, ``don't`` is ``don t``. Symbols stay where
    they are (``x + y``, ``x+y``, ``c++``, ``$5``), and with them what punctuation computes, counts or measures: ``*``,
    ``/``, ``%``, ``&``, ``@``, ``#``, a backslash; marks between two digits (``1.50``, ``12:30``) and a point before
    one; ``!`` before a word or ``=``; dashes, all as ``-``, but between two letters (``well-known``). A character is a
    word in scripts that are written without spaces (Chinese characters, kana, Thai, Lao, Khmer, Burmese, Tibetan, Yi),
    else a whole sentence of theirs would be one.
    """
    result = _normalise(texts, lowercase=True, nfd_unicode=True, white_space=False)
    plain = pc.string_is_ascii(result)
    foreign = pc.invert(plain)
    for chosen, split in ((plain, False), (foreign, True)):  # ASCII, which is most, in a quarter of the memory
        if pc.any(chosen).as_py():
            some = pa.array(_parted(result.filter(chosen).to_pylist()), pa.large_string())
            if split:
                some = pc.replace_substring_regex(some, pattern=_UNSPACED, replacement=r" \1 ")
            result = pc.replace_with_mask(result, chosen, some)
    return _normalise(result, lowercase=False, nfd_unicode=False, white_space=True)


def _parted(texts: Sequence[str]) -> list[str]:
    """Texts with a space for each mark that parts words, so that every other character stays at its place."""
    joined = "".join(texts)
    ends = list(itertools.accumulate(map(len, texts)))
    code = "ascii" if joined.isascii() else "utf-32-le"
    characters = np.frombuffer(bytearray(joined, code), np.uint8 if code == "ascii" else np.uint32)
    kinds = _kinds()[characters]
    # Looked at are the marks alone, a tenth of a text. No text depends on what stands beside it in a batch.
    marks = np.flatnonzero(kinds >= _DASH)
    begins, stops = _among(marks, [0, *ends]), _among(marks + 1, ends)
    before = np.where(begins, 0, kinds[marks - 1])
    following = np.where(stops, 0, characters[np.minimum(marks + 1, len(characters) - 1)])
    parts = _part(kinds[marks], characters[marks], before, following)
    dashes = np.flatnonzero(kinds[marks] == _DASH)
    characters[marks[dashes]] = _HYPHEN
    parts[dashes] = _between_letters(marks[dashes], begins[dashes], before[dashes], _kinds()[following[dashes]])
    characters[marks[parts]] = _SPACE
    result = characters.tobytes().decode(code)
    return [result[begin:end] for begin, end in itertools.pairwise([0, *ends])]


def _among(places: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """[M] bool, which of the rising ``places`` [M] are among the rising ``chosen``, which are few."""
    found = np.searchsorted(places, chosen)
    here = found < len(places)
    result = np.zeros(len(places), bool)
    result[found[here]] = places[found[here]] == np.array(chosen, np.int64)[here]
    return result


def _part(kinds: np.ndarray, marks: np.ndarray, before: np.ndarray, following: np.ndarray) -> np.ndarray:
    """[M] bool, the marks that part words; others belong to a number that they are in, or negate what follows.

    Args:
        kinds, marks: [M], each mark.
        before: [M], the kind of the character before it; 0 where there is none.
        following: [M], the character behind it; 0 where there is none.
    """
    after = _kinds()[following]
    number = (after == _DIGIT) & ((before == _DIGIT) | ((marks == _POINT) & (before != _LETTER)))
    word = (before != _LETTER) & (before != _DIGIT) & ((after == _LETTER) | (after == _DIGIT))
    negated = (marks == _NOT) & (word | (following == _EQUALS))
    return (kinds == _MARK) & ~number & ~negated


def _between_letters(dashes: np.ndarray, begins: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[P] bool, the dashes in a run of dashes with a letter on both sides.

    Args:
        dashes: [P] int64, their places.
        begins: [P] bool, those that a text begins with.
        before, after: [P], the kinds of the characters on both sides of each.
    """
    if not len(dashes):
        return np.zeros(0, bool)
    fresh = begins | (np.diff(dashes, prepend=-2) > 1)
    last = np.append(fresh[1:], True)
    inside = (before[fresh] == _LETTER) & (after[last] == _LETTER)
    return inside[np.cumsum(fresh) - 1]


@functools.cache
def _kinds() -> np.ndarray:
    """[0x110000] uint8, what each code point is: a letter or its mark, a digit, a dash, a mark that parts, or else."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    of_category = {"L": _LETTER, "M": _LETTER, "N": _DIGIT, "P": _MARK}
    for point in (*range(0x32400), *range(0xE0000, 0xE0200)):  # beyond are private use and what is not assigned
        category = unicodedata.category(chr(point))
        kinds[point] = _DASH if category == "Pd" else of_category.get(category[0], 0)
    kinds[[ord(character) for character in _OPERATORS]] = 0
    kinds[[ord(character) for character in _QUOTES]] = _MARK
    kinds[ord(_MINUS)] = _DASH
    return kinds


def _normalise(texts: pa.Array, **changes: bool) -> pa.Array:
    made = daft.Series.from_arrow(texts).str.normalize(remove_punct=False, **changes).to_arrow()
    return (pa.concat_arrays(made.chunks) if isinstance(made, pa.ChunkedArray) else made).cast(pa.large_string())
