"""The quality and repetition rules of MassiveText (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 and table A1).

Where the paper leaves something open, the choice is said at the setting. Words are what :mod:`.analysis` says.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from leyden.data.rules.analysis import Analysis, Spans, covered, ngrams, repeats
from leyden.data.rules.base import Limit, RuleStage, fraction
from leyden.data.rules.characters import LETTER, UNSPACED


class GopherQuality(RuleStage):
    """Drop documents by their numbers and lengths of words, symbols, bullets, ellipses, letters and stop words.

    The rules and thresholds are those of Gopher's quality filtering (arXiv 2112.11446, appendix A.1.1).
    """

    TITLE: ClassVar[str] = "gopher"
    VERSION: ClassVar[int] = 2
    kind: Literal["gopher_quality"] = "gopher_quality"

    min_words: int = 50
    """A document of fewer words with a letter or digit is dropped; A.1.1."""
    max_words: int = 100_000
    """A document of more is dropped; A.1.1."""
    min_word_length: float = 3
    """Mean characters of a word's core; A.1.1. Not asked where most words are letters of scripts without spaces."""
    max_word_length: float = 10
    """The same from above; A.1.1."""
    max_symbols: float = 0.1
    """Hashes per word, and ellipses (``...`` or ``…``) per word, where every word counts; A.1.1."""
    max_bullet_lines: float = 0.9
    """Share of lines that begin with a bullet; A.1.1."""
    bullets: str = "•‣◦●▪-*"
    """What a bullet is; the paper does not say."""
    max_ellipsis_lines: float = 0.3
    """Share of lines that end with an ellipsis, closing quotation marks and brackets behind it aside; A.1.1 does not
    speak of these, and datatrove looks at a line's very last characters."""
    min_alphabetic_words: float = 0.8
    """Share of words, of all, with at least one letter; A.1.1."""
    min_stop_words: int = 2
    """How many of the stop words must be there; A.1.1."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """English, as in A.1.1; in any case. Set others, or ``min_stop_words = 0``, for documents in other languages."""

    def limits(self, analysis: Analysis) -> list[Limit]:
        """See :meth:`RuleStage.limits`."""
        texts, words, cores, lines = analysis.texts, analysis.words, analysis.cores, analysis.lines
        num_words = analysis.sums(words.document)
        num_lines = analysis.sums(lines.document)
        hashes = np.array([text.count("#") for text in texts], float)
        ellipses = np.array([text.count("...") + text.count("…") for text in texts], float)
        bullets = np.isin(analysis.characters[lines.first], [ord(bullet) for bullet in self.bullets])
        alphabetic = (analysis.word_flags & LETTER) != 0
        length = _mean_length(analysis)
        return [
            Limit("number of words", analysis.sums(cores.document), self.min_words, self.max_words),
            Limit("mean word length", length, self.min_word_length, self.max_word_length),
            Limit("hashes per word", fraction(hashes, num_words), most=self.max_symbols),
            Limit("ellipses per word", fraction(ellipses, num_words), most=self.max_symbols),
            Limit(
                "lines with bullets",
                fraction(analysis.sums(lines.document[bullets]), num_lines),
                most=self.max_bullet_lines,
            ),
            Limit(
                "lines ending in ellipsis",
                fraction(analysis.sums(lines.document[ends_in_ellipsis(analysis)]), num_lines),
                most=self.max_ellipsis_lines,
            ),
            Limit(
                "words with letters",
                fraction(analysis.sums(words.document[alphabetic]), num_words),
                least=self.min_alphabetic_words,
            ),
            Limit("stop words", self._stop_words(analysis, cores), least=self.min_stop_words),
        ]

    def _stop_words(self, analysis: Analysis, cores: Spans) -> np.ndarray:
        """[D] float64, how many of the stop words each document has."""
        present = np.zeros(len(analysis))
        for word in {word.lower() for word in self.stop_words}:
            places = np.flatnonzero(cores.length == len(word))
            for offset, letter in enumerate(word):
                character = analysis.characters[cores.first[places] + offset]
                places = places[(character == ord(letter)) | (character == ord(_upper(letter)))]
            present[cores.document[places]] += 1  # once, however often the index comes
        return present


def _upper(letter: str) -> str:
    return letter.upper() if len(letter.upper()) == 1 else letter


def mostly_unspaced(analysis: Analysis) -> np.ndarray:
    """[D] bool: documents of which half of the words or more are letters of scripts without spaces."""
    if not analysis.has(UNSPACED).any():
        return np.zeros(len(analysis), bool)
    letters = (analysis.kinds[analysis.cores.first] & UNSPACED) != 0
    number = analysis.sums(analysis.cores.document)
    return (number > 0) & (2 * analysis.sums(analysis.cores.document[letters]) >= number)


def _mean_length(analysis: Analysis) -> np.ndarray:
    """[D] float64, the mean length of cores but letters of scripts without spaces; NaN where those are the most."""
    cores = analysis.cores
    spaced = (analysis.kinds[cores.first] & UNSPACED) == 0
    mean = fraction(analysis.sums(cores.document[spaced], cores.length[spaced]), analysis.sums(cores.document[spaced]))
    return np.where(mostly_unspaced(analysis), np.nan, mean)


def ends_in_ellipsis(analysis: Analysis) -> np.ndarray:
    """[L] bool, the lines that end with ``...`` or ``…``, see :attr:`Analysis.line_ends`."""
    first, last = analysis.lines.first, analysis.line_ends
    dots = last - first >= 2
    for back in (0, 1, 2):
        dots &= analysis.characters[np.maximum(last - back, first)] == ord(".")
    return dots | (analysis.characters[last] == ord("…"))


class GopherRepetition(RuleStage):
    """Drop documents whose lines, paragraphs and n-grams come again (Gopher, arXiv 2112.11446, table A1).

    A line, paragraph or n-gram of five and more words is a duplicate from its second time on; n-grams are of words as
    they are written, with case and punctuation. Characters are those of words, without the white space between them;
    a character in several n-grams counts once. The most frequent n-gram of two to four words counts with all its
    places, unless it comes but once.
    """

    TITLE: ClassVar[str] = "gopher"
    kind: Literal["gopher_repetition"] = "gopher_repetition"

    max_duplicate_lines: float = 0.3
    """Share of lines; table A1."""
    max_duplicate_paragraphs: float = 0.3
    """Share of paragraphs; table A1."""
    max_duplicate_line_characters: float = 0.2
    """Share of the characters of all lines; table A1."""
    max_duplicate_paragraph_characters: float = 0.2
    """Share of the characters of all paragraphs' lines; table A1."""
    max_top_ngram: dict[int, float] = Field(default={2: 0.20, 3: 0.18, 4: 0.16})
    """For each n, the share of characters in the most frequent n-gram; table A1."""
    max_duplicate_ngrams: dict[int, float] = Field(default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """For each n, the share of characters in duplicate n-grams; table A1."""
    letters_per_word: int = Field(default=2, ge=1)
    """Where most words are single letters of scripts without spaces, an n-gram is of this times n letters: about what
    a word has in Chinese and Japanese. (Of man pages in Japanese, 1 would drop 7 of 10; in English 1 of 10 go.)"""

    def limits(self, analysis: Analysis) -> list[Limit]:
        """See :meth:`RuleStage.limits`."""
        lines, paragraphs = analysis.lines, analysis.paragraphs
        again = repeats(lines.document, analysis.line_ids)
        paragraph_again = repeats(paragraphs.document, analysis.paragraph_ids)
        sizes = analysis.paragraph_characters
        result = []
        for name, document, repeated, weights, most in (
            ("duplicate lines", lines.document, again, None, self.max_duplicate_lines),
            ("duplicate paragraphs", paragraphs.document, paragraph_again, None, self.max_duplicate_paragraphs),
            ("characters in duplicate lines", lines.document, again, lines.length, self.max_duplicate_line_characters),
            (
                "characters in duplicate paragraphs",
                paragraphs.document,
                paragraph_again,
                sizes,
                self.max_duplicate_paragraph_characters,
            ),
        ):
            values = duplicate_share(analysis, document, repeated, weights)
            result.append(Limit(name, values, most=most))
        return result + self._ngram_limits(analysis)

    def _ngram_limits(self, analysis: Analysis) -> list[Limit]:
        words = analysis.words
        total = analysis.sums(words.document, words.length)
        unspaced = mostly_unspaced(analysis)
        factor = self.letters_per_word if unspaced.any() else 1
        rules = (
            ("in the top {}-gram", self.max_top_ngram, lambda grams: grams.top(words.document)),
            ("in duplicate {}-grams", self.max_duplicate_ngrams, lambda grams: ~grams.firsts),
        )
        shares: dict[tuple[str, int], np.ndarray] = {}
        for grams in ngrams(analysis, factor * max([0, *self.max_top_ngram, *self.max_duplicate_ngrams])):
            for name, most, choose in rules:
                if grams.n in most or (factor > 1 and grams.n % factor == 0 and grams.n // factor in most):
                    inside = covered(grams.place[choose(grams)], grams.n, len(words))
                    part = analysis.sums(words.document[inside], words.length[inside])
                    shares[name, grams.n] = fraction(part, total)
        nothing = fraction(np.zeros(len(analysis)), total)
        return [
            Limit(
                f"characters {name.format(n)}",
                np.where(unspaced, shares.get((name, factor * n), nothing), shares.get((name, n), nothing)),
                most=most[n],
            )
            for name, most, _ in rules
            for n in sorted(most)
        ]


def duplicate_share(
    analysis: Analysis, document: np.ndarray, repeated: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """[D] float64, the share of parts that are repeated.

    Args:
        document: [S] int64, of each part.
        repeated: [S] bool.
        weights: [S], of each part; equal if None.
    """
    part = analysis.sums(document[repeated], None if weights is None else weights[repeated])
    return fraction(part, analysis.sums(document, weights))
