"""What kind of character each code point of Unicode is, as one byte of flags: the table that all rules look up in."""

import functools
import sys
import unicodedata

import numpy as np

SPACE = 1
"""White space: where words end (``str.isspace``)."""
CORE = 2
"""Letters, combining marks and numbers (categories L, M, N): what makes a run of characters a word."""
LETTER = 4
"""``str.isalpha``."""
MARK = 8
"""Combining marks (category M), which belong to the character before them."""
UNSPACED = 16
"""Letters, marks and numbers of the scripts in :data:`UNSPACED_SCRIPTS`."""
TERMINAL = 32
"""What ends a sentence: Unicode's property Sentence_Terminal."""
CLOSING = 64
"""Quotation marks and closing brackets, which may follow the end of a sentence, in every script's typography:
categories Pe, Pf, Pi, and :data:`QUOTES`. Opening marks (Pi) are among them, as they close in German or Danish."""
NEWLINE = 128
"""The line feed."""

UNSPACED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "Javanese")
"""Scripts that are written without spaces between words."""

QUOTES = "\"'＂＇❜❞"
"""Quotation marks that Unicode does not call closing: typewriters', their wide forms, ornaments."""

_ASSIGNED = (*range(0x32400), *range(0xE0000, 0xE0200))  # beyond are private use and what is not assigned
_LONG_SOUND = (0x30FC, 0xFF70)  # of both kana, so of neither script to Unicode


@functools.cache
def table() -> np.ndarray:
    """[0x110000] uint8, the flags of each code point."""
    flags = np.zeros(sys.maxunicode + 1, np.uint8)
    for point in _ASSIGNED:
        flags[point] = _flags(chr(point))
    unspaced = np.array([*_LONG_SOUND, *code_points("|".join(rf"\p{{Script={name}}}" for name in UNSPACED_SCRIPTS))])
    flags[unspaced[(flags[unspaced] & CORE) != 0]] |= UNSPACED
    flags[code_points(r"\p{Sentence_Terminal}")] |= TERMINAL
    return flags


@functools.cache
def quotation_marks() -> np.ndarray:
    """[0x110000] bool, what closes a quotation: categories Pf and Pi, the corner brackets of East Asia, QUOTES."""
    marks = np.zeros(sys.maxunicode + 1, bool)
    marks[[point for point in _ASSIGNED if unicodedata.category(chr(point)) in ("Pf", "Pi")]] = True
    marks[[ord(mark) for mark in QUOTES + "」』﹂﹄｣〞〟》〉"]] = True
    return marks


def code_points(pattern: str) -> list[int]:
    """The code points that match a regular expression of Unicode properties.

    Raises:
        ValueError: there is no such property.
    """
    import regex

    try:
        return [ord(character) for character in regex.findall(pattern, "".join(map(chr, _ASSIGNED)))]
    except regex.error as error:
        raise ValueError(f"{pattern}: {error}") from None


def _flags(character: str) -> int:
    category = unicodedata.category(character)
    return (
        SPACE * character.isspace()
        | CORE * (category[0] in "LMN")
        | LETTER * (category[0] == "L")
        | MARK * (category[0] == "M")
        | CLOSING * (category in ("Pe", "Pf", "Pi") or character in QUOTES)
        | NEWLINE * (character == "\n")
    )
