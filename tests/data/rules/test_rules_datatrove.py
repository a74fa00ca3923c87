"""Agreement with datatrove's filters where it is installed, given our words and sentences in place of spaCy's.

Where we differ, and why:

- Words: ours are separated by white space, as in the papers' plain words; datatrove's tokenizer makes each mark a word,
  so that four words in five "with a letter" drops much plain prose.
- C4: a curly bracket or "lorem ipsum" anywhere drops the page (the paper), not only in lines that stay (the code); a
  line whose citation mark follows a space ("end. [1]") ends with what is before the space.
- Gopher: case does not matter for stop words, and marks at their ends neither; blank lines do not count as lines;
  fractions are of the characters of words, not of all characters; an n-gram that comes once is no repetition; all
  places of duplicate n-grams count, where datatrove skips n words after each it finds, so that ours is never smaller.
- C4, FineWeb, Gopher: what a line ends with is looked for behind closing quotation marks and brackets, of any script.
- FineWeb: lines are compared without the white space around them, and a line of exactly 30 characters is not short.
"""

import pydoc_data.topics
import re
from pathlib import Path

import numpy as np
import pytest

from leyden.data.documents import Document, Documents
from leyden.data.rules import C4, FineWeb, GopherQuality, GopherRepetition
from leyden.data.rules.analysis import Analysis
from leyden.data.rules.c4 import sentences

filters = pytest.importorskip("datatrove.pipeline.filters")

TEXTS = [
    *(re.sub("(?m)^ +| +$", "", text) for text in pydoc_data.topics.topics.values()),
    *(
        "The same line is here again.\n" * 9,
        "One.\n\n" * 30,
        "It is the end of that ...\n" * 60,
        "- of the item\n" * 60,
    ),
    *("and so on and so on to be sure that we have it. " * 20, "# the of\n" * 80, "the of 1 2 3 4 5 6 7 8 9 " * 10),
]


def _words(text, language=None):
    return text.split()


def _sentences(line, language=None):
    return [""] * int(sentences(Analysis([line])).sum())


@pytest.fixture(autouse=True)
def our_words(monkeypatch):
    for module in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter"):
        monkeypatch.setattr(f"datatrove.pipeline.filters.{module}.split_into_words", _words)
    monkeypatch.setattr("datatrove.pipeline.filters.c4_filters.split_into_sentences", _sentences)


def _theirs(filter_, texts):
    from datatrove.data import Document as Theirs

    pages = [Theirs(text, "id") for text in texts]
    results = [filter_.filter(page) for page in pages]
    return [result is True for result in results], [page.text for page in pages]


def _ours(stage, texts):
    judged = stage.apply(Documents.of([Document(str(i), text, "memory") for i, text in enumerate(texts)]), "", Path())
    return [reason is None for reason in judged.column("reason")], judged.column("text")


def test_c4():
    texts = [re.sub(r" \[\d*]", "", text) for text in TEXTS if not set("{}") & set(text)]
    stage, theirs = C4(line_ends=".?!\"'"), filters.C4QualityFilter(min_num_sentences=3, min_words_per_line=5)
    (ours, kept), (expected, pages) = _ours(stage, texts), _theirs(theirs, texts)
    assert ours == expected and 10 < sum(ours) < len(texts)
    assert all(a == b for a, b, stays in zip(kept, pages, ours, strict=True) if stays)


def test_gopher_quality():
    (ours, _), (expected, _) = _ours(GopherQuality(bullets="•-"), TEXTS), _theirs(filters.GopherQualityFilter(), TEXTS)
    assert np.mean(np.equal(ours, expected)) > 0.95 and 10 < sum(ours) < len(TEXTS)


def test_fineweb():
    stage = FineWeb(max_duplicate_line_characters=0.01, short_line_characters=31)
    (ours, _), (expected, _) = _ours(stage, TEXTS), _theirs(filters.FineWebQualityFilter(), TEXTS)
    assert np.mean(np.equal(ours, expected)) > 0.95 and 3 < sum(ours) < len(TEXTS)


def test_gopher_repetition():
    from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates

    limits = {limit.name: limit.values for limit in GopherRepetition().limits(Analysis(TEXTS))}
    for row, text in enumerate(TEXTS):
        lines = [line for line in text.split("\n") if line]
        number, characters = find_duplicates(lines)
        assert limits["duplicate lines"][row] == number / len(lines)
        assert limits["characters in duplicate lines"][row] == characters / len("".join(lines))
        words = text.split()
        for n in range(5, 11):
            theirs = find_all_duplicate(words, n) / len("".join(words))
            assert theirs <= limits[f"characters in duplicate {n}-grams"][row] + 1e-12
    (ours, _), (expected, _) = _ours(GopherRepetition(), TEXTS), _theirs(filters.GopherRepetitionFilter(), TEXTS)
    assert np.mean(np.equal(ours, expected)) > 0.85 and 10 < sum(ours) < len(TEXTS)
