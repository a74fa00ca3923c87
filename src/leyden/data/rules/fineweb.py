"""The rules that FineWeb adds to C4's and Gopher's (Penedo et al. 2024, arXiv 2406.17557, section 3.6)."""

from typing import ClassVar, Literal

import numpy as np

from leyden.data.rules.analysis import Analysis, repeats
from leyden.data.rules.base import Limit, RuleStage, fraction
from leyden.data.rules.characters import TERMINAL
from leyden.data.rules.gopher import duplicate_share


class FineWeb(RuleStage):
    """Drop pages whose lines do not end like sentences, come again, or are as short as those of a menu.

    Lines are those that are not blank, without the white space around them.
    """

    TITLE: ClassVar[str] = "fineweb"
    VERSION: ClassVar[int] = 2
    kind: Literal["fineweb"] = "fineweb"

    min_punctuated_lines: float = 0.12
    """Share of lines that end with a mark that ends sentences (Unicode's Sentence_Terminal), closing quotation marks
    and brackets behind it aside. The threshold is the paper's, which does not list the marks. The code that made
    FineWeb counted lines whose very last character was one of ``. ! ? ' "``; today's datatrove counts the
    sentence-ending marks of all scripts there, but no quotation mark: to it a page of dialogue is no prose."""
    max_short_lines: float = 0.67
    """Share of lines shorter than ``short_line_characters``; the paper."""
    short_line_characters: int = 30
    """Characters from which a line is not short any more; the paper."""
    max_duplicate_line_characters: float = 0.1
    """Share of the characters of lines that came before; the paper. The released code of FineWeb ran with 0.01."""
    max_newlines_per_word: float = 0.3
    """Line feeds per word, as in lists; not in the paper, but in the released code (``new_line_ratio``)."""

    def limits(self, analysis: Analysis) -> list[Limit]:
        """See :meth:`RuleStage.limits`."""
        lines = analysis.lines
        number = analysis.sums(lines.document)
        punctuated = (analysis.kinds[analysis.line_ends] & TERMINAL) != 0
        short = lines.length < self.short_line_characters
        again = repeats(lines.document, analysis.line_ids)
        newlines = np.array([text.count("\n") for text in analysis.texts], float)
        duplicate = duplicate_share(analysis, lines.document, again, lines.length)
        return [
            Limit("number of lines", number, least=1),
            Limit(
                "lines ending in punctuation",
                fraction(analysis.sums(lines.document[punctuated]), number),
                least=self.min_punctuated_lines,
            ),
            Limit("short lines", fraction(analysis.sums(lines.document[short]), number), most=self.max_short_lines),
            Limit("characters in duplicate lines", duplicate, most=self.max_duplicate_line_characters),
            Limit(
                "newlines per word",
                fraction(newlines, analysis.sums(analysis.words.document)),
                most=self.max_newlines_per_word,
            ),
        ]
