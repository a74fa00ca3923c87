"""Counting words: the same as splitting every text whole, and what is forgotten is bounded and said."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.tokenizer.bpe import split_text
from leyden.tokenizer.words import WordCounts

CHARACTERS = st.one_of(
    st.sampled_from(" \t\n\r/a_B1.;-'s\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u0301東ßİſ²Ⅷ٣"),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.lists(st.text(CHARACTERS, max_size=40), max_size=6)


def whole(texts):
    return Counter(word for text in texts for word in split_text(text))


@given(TEXTS)
def test_words_are_those_of_texts_split_whole(texts):
    assert WordCounts.of(texts).words.get("", {}) == whole(texts)


def test_every_character_next_to_every_kind_of_neighbour():
    codes = [*range(0x3100), *range(0x3100, 0xD800, 331), *range(0xE000, 0x32000, 211)]
    characters = list(map(chr, codes))
    for before, after in [("a", "\n"), (";", "\n"), ("\n", " a")]:
        texts = ["".join(before + c + after for c in characters[i : i + 512]) for i in range(0, len(characters), 512)]
        assert WordCounts.of(texts).words[""] == whole(texts)


def test_a_long_text_is_counted_in_parts(monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.words._MAX_CHARACTERS", 100)
    monkeypatch.setattr("leyden.tokenizer.words._MAX_CHUNKS", 50)
    text = "".join(f"word{i} {i}\n" * (i % 3) for i in range(500))
    assert WordCounts.of([text]).words[""] == whole([text])


def test_languages_are_counted_apart_and_parts_add_up():
    one, two, all_of_it = WordCounts(), WordCounts(), WordCounts()
    for index, (text, language) in enumerate([("der Hund", "de"), ("the dog", "en"), ("der Hund é", "de"), ("x", "")]):
        (one, two)[index % 2].add(text, language)
        all_of_it.add(text, language)
    one.update(two)
    assert one.words == all_of_it.words
    assert one.words["de"] == {"der": 2, " Hund": 2, " é": 1}
    assert one.num_bytes == all_of_it.num_bytes == {"de": 8 + 11, "en": 7, "": 1}
    assert one.num_documents == {"de": 2, "en": 1, "": 1}
    assert one.total_bytes == 27


def test_the_rarest_words_are_forgotten_and_the_error_is_bounded(monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.words._MAX_CHUNKS", 10)
    texts = [f" w{i}" * (1 + 100 // (1 + i % 97)) for i in range(97 * 5)]
    counts, truth = WordCounts.of(texts, max_words=40), whole(texts)
    assert len(counts.words[""]) <= 40
    assert counts.undercount > 0
    assert counts.forgotten == truth.total() - counts.words[""].total()
    assert all(truth[word] - counts.undercount <= count <= truth[word] for word, count in counts.words[""].items())
    assert all(count <= counts.undercount for word, count in truth.items() if word not in counts.words[""])


def test_a_table_is_sorted_and_aligned():
    counts = WordCounts()
    counts.add("b a", "x")
    counts.add("b c", "y")
    words, table = counts.table()
    assert words == [" a", " c", "b"]
    assert {name: column.tolist() for name, column in table.items()} == {"x": [1, 0, 1], "y": [0, 1, 1]}


def test_bad_text_and_counts_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"U\+D800, at character 1"):
        WordCounts.of(["a\ud800"])
    with pytest.raises(UserError, match=r"2\^63"):
        WordCounts.of_counts({"ab": 1 << 63}).table()
