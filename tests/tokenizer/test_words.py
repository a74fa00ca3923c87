"""Counting words: the same as splitting every text whole, and what is forgotten is bounded and said."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from leyden.core.errors import UserError
from leyden.tokenizer.bpe import SPLIT_PATTERN, split_text
from leyden.tokenizer.words import Sizes, WordCounts, WordGroup, table

CHARACTERS = st.one_of(
    st.sampled_from(" \t\n\r/a_B1.;-'s\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u0301東ßİſ²Ⅷ٣"),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.lists(st.text(CHARACTERS, max_size=40), max_size=6)


def whole(texts):
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))


ASCII = st.text(st.sampled_from(" \t\n\r\x0b\x0c\x1c\x1f\0/aBsS'TreLVm_1.;-"), max_size=60)


@settings(max_examples=500)
@given(ASCII)
def test_ascii_is_split_alike_by_both_engines(text):
    assert Counter(split_text(text)) == whole([text])
    assert "".join(split_text(text)) == text


@given(TEXTS)
def test_words_are_those_of_texts_split_whole(texts):
    assert WordCounts.of(texts).words.get(WordGroup(), {}) == whole(texts)


def test_every_character_next_to_every_kind_of_neighbour():
    codes = [*range(0x3100), *range(0x3100, 0xD800, 331), *range(0xE000, 0x32000, 211)]
    characters = list(map(chr, codes))
    for before, after in [("a", "\n"), (";", "\n"), ("\n", " a")]:
        texts = ["".join(before + c + after for c in characters[i : i + 512]) for i in range(0, len(characters), 512)]
        assert WordCounts.of(texts).words[WordGroup()] == whole(texts)


def test_a_long_text_is_counted_in_parts(monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.words._MAX_CHARACTERS", 100)
    monkeypatch.setattr("leyden.tokenizer.words._MAX_CHUNKS", 50)
    text = "".join(f"word{i} {i}\n" * (i % 3) for i in range(500))
    assert WordCounts.of([text]).words[WordGroup()] == whole([text])


def test_groups_are_counted_apart_and_parts_add_up():
    one, two, all_of_it = WordCounts(), WordCounts(), WordCounts()
    german, english = WordGroup("de", "web"), WordGroup("en", "web")
    given_texts = [("der Hund", german), ("the dog", english), ("der Hund é", german), ("x", WordGroup("de", "books"))]
    for index, (text, group) in enumerate(given_texts):
        (one, two)[index % 2].add(text, group)
        all_of_it.add(text, group)
    one.update(two)
    assert one.words == all_of_it.words
    assert one.words[german] == {"der": 2, " Hund": 2, " é": 1}
    assert one.by_language() == {"de": {"der": 2, " Hund": 2, " é": 1, "x": 1}, "en": {"the": 1, " dog": 1}}
    assert one.sizes == all_of_it.sizes
    assert one.sizes[german] == Sizes(num_documents=2, num_bytes=8 + 11, num_spaced=5)
    assert one.total == Sizes(num_documents=4, num_bytes=27, num_spaced=8)


def test_the_rarest_words_are_forgotten_and_the_error_is_bounded(monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.words._MAX_CHUNKS", 10)
    texts = [f" w{i}" * (1 + 100 // (1 + i % 97)) for i in range(97 * 5)]
    counts, truth = WordCounts.of(texts, max_words=40), whole(texts)
    assert len(counts.words[WordGroup()]) <= 40
    assert counts.undercount > 0
    assert counts.forgotten == truth.total() - counts.words[WordGroup()].total()
    assert all(
        truth[word] - counts.undercount <= count <= truth[word] for word, count in counts.words[WordGroup()].items()
    )
    assert all(count <= counts.undercount for word, count in truth.items() if word not in counts.words[WordGroup()])


def test_a_table_is_sorted_and_aligned():
    words, counts = table({"x": {"b": 1, " a": 1}, "y": {"b": 1, " c": 1}})
    assert words == [" a", " c", "b"]
    assert {name: column.tolist() for name, column in counts.items()} == {"x": [1, 0, 1], "y": [0, 1, 1]}


def test_bad_text_and_counts_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"U\+D800, at character 1"):
        WordCounts.of(["a\ud800"])
    with pytest.raises(UserError, match=r"2\^63"):
        table(WordCounts.of_counts({"ab": 1 << 63}).by_language())
