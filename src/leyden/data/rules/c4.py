"""The rules of C4 (Raffel et al. 2020, "Exploring the limits of transfer learning", section 2.2).

Lines that are no sentences are cut out of web pages, and pages that look like code, filler or abuse are dropped. Two
rules are in the authors' code alone (tensorflow/datasets, ``text/c4_utils.py``): policy lines and very long words. The
paper's three-sentence deduplication and its language rule are other stages.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from leyden.data.documents import Documents
from leyden.data.rules.analysis import Analysis
from leyden.data.rules.base import Limit, RuleStage, empty_verdicts
from leyden.data.rules.characters import TERMINAL, UNSPACED, quotation_marks, table
from leyden.data.rules.gopher import ends_in_ellipsis
from leyden.data.rules.lists import load

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_WORD = re.compile(r"\w+")


class C4(RuleStage):
    """Keep the lines that are sentences; drop pages with too few of them, with braces, filler or listed words.

    The lines of a nested document are judged but its messages stay whole, as cutting lines would tear a dialogue.
    """

    TITLE: ClassVar[str] = "c4"
    VERSION: ClassVar[int] = 2
    kind: Literal["c4"] = "c4"

    line_ends: str = '.!?"'
    """A line stays if it ends with one of these, closing quotation marks and brackets behind it aside, but not with
    ``...``; empty: lines may end as they like (as FineWeb ran C4's rules). Section 2.2: "a period, exclamation mark,
    question mark, or end quotation mark". In every script: ``.!?``, where all three are given, stand for all marks
    that end sentences (Unicode's Sentence_Terminal), and ``"`` for every closing quotation mark at the very end. The
    authors' code and datatrove know the ASCII characters alone, and no bracket behind them."""
    min_line_words: int = 5
    """A line stays if it has as many words; the authors' code, as is ``min_sentences``. Some printings of
    section 2.2 have 3 words and 5 sentences."""
    max_word_characters: int = 1000
    """A line with a longer word goes; the authors' code."""
    line_phrases: tuple[str, ...] = (
        "javascript",
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """A line with any of these, in any case, goes; section 2.2 (javascript) and the authors' code (policies)."""
    citations: bool = True
    """Remove the marks of Wikipedia: ``[1]``, ``[]``, ``[edit]``, ``[citation needed]``; section 2.2."""
    min_sentences: int = 3
    """Pages with fewer sentences in the lines that stay are dropped; section 2.2. A sentence ends where a word ends
    with a terminal mark, quotes and brackets behind it aside; in scripts without spaces, at each such mark."""
    max_braces: int = 0
    """Curly brackets that a page may have; section 2.2. The whole page is looked at, as the paper says."""
    page_phrases: tuple[str, ...] = ("lorem ipsum",)
    """Pages with any of these, in any case, are dropped; section 2.2."""
    bad_words: Path | None = None
    """A list of words or phrases, one a line: pages with any of them, in any case and not as part of another word, are
    dropped; section 2.2. Entries in scripts without spaces are looked for anywhere."""

    def files(self) -> tuple[Path, ...]:
        """The list of bad words."""
        return (self.bad_words,) if self.bad_words else ()

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop pages, and cut lines out of those that stay."""
        reasons, details = empty_verdicts(len(documents))
        written = documents.column("text")
        for rows, pages in self.chosen_chunks(documents):
            analysis = Analysis([self._without_citations(page) for page in pages])
            keeps = self.kept_lines(analysis)
            self.judge(self._limits(analysis, pages, keeps), rows, reasons, details)
            for row, text in zip(rows, _rewritten(analysis, keeps), strict=True):
                if reasons[row] is None and written[row] is not None:
                    written[row] = text
        return documents.with_column("text", written).drop(reasons, details)

    def _without_citations(self, text: str) -> str:
        return _CITATION.sub("", text) if self.citations and "[" in text else text

    def kept_lines(self, analysis: Analysis) -> np.ndarray:
        """[L] bool, the lines that stay."""
        lines = analysis.lines
        keeps = (analysis.words_per_line >= self.min_line_words) & (analysis.longest_words <= self.max_word_characters)
        if self.line_ends:
            marks = np.isin(analysis.characters[analysis.line_ends], [ord(mark) for mark in self.line_ends])
            if set(".!?") <= set(self.line_ends):
                marks |= (analysis.kinds[analysis.line_ends] & TERMINAL) != 0
            marks &= ~ends_in_ellipsis(analysis)
            if '"' in self.line_ends:
                marks |= quotation_marks()[analysis.characters[lines.last - 1]]
            keeps &= marks
        phrases = [phrase.lower() for phrase in self.line_phrases]
        lowered = [text.lower() for text in analysis.texts]
        suspects = [any(phrase in text for phrase in phrases) for text in lowered]
        for line in np.flatnonzero(keeps & np.array(suspects, bool)[lines.document]):
            text = analysis.joined[lines.first[line] : lines.last[line]].lower()
            keeps[line] = not any(phrase in text for phrase in phrases)
        return keeps

    def _limits(self, analysis: Analysis, pages: Sequence[str], keeps: np.ndarray) -> list[Limit]:
        document = analysis.lines.document[keeps]
        lowered = [page.lower() for page in pages]
        braces = np.array([page.count("{") + page.count("}") for page in pages], float)
        filler = [", ".join(phrase for phrase in self.page_phrases if phrase.lower() in page) for page in lowered]
        limits = [
            Limit("curly brackets", braces, most=self.max_braces),
            Limit("filler text", np.array([float(bool(found)) for found in filler]), most=0, found=filler),
        ]
        if self.bad_words:
            listed = load(self.bad_words, _BadWords)
            bad = [listed.found(page) for page in lowered]
            limits.append(Limit("listed words", np.array([float(len(f)) for f in bad]), most=0, found=_joined(bad)))
        return [
            *limits,
            Limit("lines that stay", analysis.sums(document), least=1),
            Limit("sentences", analysis.sums(document, sentences(analysis)[keeps]), least=self.min_sentences),
        ]


def sentences(analysis: Analysis) -> np.ndarray:
    """[L] int64, the sentences of each line, at least one."""
    words = analysis.words
    last = analysis.ends(words)
    ended = (analysis.kinds[last] & TERMINAL) != 0
    ended |= ((analysis.kinds[words.first] & UNSPACED) != 0) & ((analysis.word_flags & TERMINAL) != 0)
    return np.maximum(1, np.add.reduceat(ended.astype(np.int64), analysis.line_words)) if len(words) else last


def _rewritten(analysis: Analysis, keeps: np.ndarray) -> list[str]:
    """[D] each text's lines that stay."""
    lines, joined = analysis.lines, analysis.joined
    parts: list[list[str]] = [[] for _ in range(len(analysis))]
    spans = zip(lines.document[keeps].tolist(), lines.first[keeps].tolist(), lines.last[keeps].tolist(), strict=True)
    for document, first, last in spans:
        parts[document].append(joined[first:last])
    return ["\n".join(part) for part in parts]


class _BadWords:
    """Finds listed words and phrases in texts in lower case."""

    def __init__(self, entries: Sequence[str]) -> None:
        lowered = sorted({entry.lower() for entry in entries})
        unspaced = [entry for entry in lowered if any(table()[ord(letter)] & UNSPACED for letter in entry)]
        self._anywhere = tuple(unspaced)
        self._by_word: dict[str, list[re.Pattern[str]]] = {}
        for entry in sorted(set(lowered) - set(unspaced)):
            first = _WORD.search(entry)
            if first:
                pattern = re.compile(rf"(?<!\w){re.escape(entry)}(?!\w)")
                self._by_word.setdefault(first[0], []).append(pattern)
            else:
                self._anywhere += (entry,)

    def found(self, text: str) -> list[str]:
        """The entries in ``text``, in order of the alphabet."""
        found = [entry for entry in self._anywhere if entry in text]
        for word in self._by_word.keys() & set(_WORD.findall(text)):
            found += [match[0] for pattern in self._by_word[word] if (match := pattern.search(text))]
        return sorted(found)


def _joined(found: Sequence[Sequence[str]]) -> list[str]:
    return [", ".join(entries[:5]) for entries in found]
