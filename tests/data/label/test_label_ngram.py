import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data.label import NGramModel, read_arpa, train_ngrams, write_arpa
from leyden.data.label.kneser_ney import discounts
from leyden.data.label.ngram import BOS, UNK
from leyden.data.label.ngram_tables import KeyTable
from leyden.data.label.perplexity import perplexities, tokens_of

sentences = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8), min_size=1, max_size=25)


class Naive:
    """Interpolated modified Kneser-Ney with dictionaries, from its definition."""

    def __init__(self, text, order: int) -> None:
        self.order = order
        padded = [["<s>", *sentence, "</s>"] for sentence in text]
        self.words = {word for sentence in padded for word in sentence} - {"<s>"} | {"<unk>"}
        raw = Counter(tuple(s[i : i + n]) for s in padded for n in range(1, order + 1) for i in range(len(s) - n + 1))
        before = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.counts = {
            gram: count if len(gram) == order or gram[0] == "<s>" else len(before[gram])
            for gram, count in raw.items()
            if gram != ("<s>",)
        }
        self.discounts = [
            discounts(np.array([c for gram, c in self.counts.items() if len(gram) == n])) for n in range(1, order + 1)
        ]

    def probability(self, context: tuple[str, ...], word: str) -> float:
        followers = {g: c for g, c in self.counts.items() if len(g) == len(context) + 1 and g[:-1] == context}
        if context and not followers:
            return self.probability(context[1:], word)
        total = sum(followers.values())
        take = {g: self.discounts[len(context)][min(c, 3) - 1] for g, c in followers.items()}
        own = (*context, word)
        share = (followers[own] - take[own]) / total if own in followers else 0.0
        below = self.probability(context[1:], word) if context else 1 / len(self.words)
        return share + sum(take.values()) / total * below


@settings(max_examples=20, deadline=None)
@given(sentences, st.integers(1, 4))
def test_every_probability_is_the_definitions(text, order):
    model, naive = train_ngrams(text, order), Naive(text, order)
    for sentence in [*text[:5], list("fedcba"), ["a", "new", "a"]]:
        padded = ["<s>", *sentence, "</s>"]
        known = [word if word in naive.words or word == "<s>" else "<unk>" for word in padded]
        logs = model.log_probabilities(model.encode([sentence]))
        for i in range(1, len(known)):
            context = tuple(known[max(0, i - order + 1) : i])
            assert 10 ** logs[i] == pytest.approx(naive.probability(context, known[i]), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(sentences, st.integers(1, 4), st.integers(1, 3))
def test_the_distribution_after_every_context_sums_to_one(text, order, min_count):
    model = train_ngrams(text, order, min_count=min_count)
    words = [id_ for id_ in range(len(model.words)) if id_ != BOS]
    contexts = [c for n in range(order + 1) for c in itertools.product(words, repeat=n)]
    for context in contexts[:: max(len(contexts) // 40, 1)]:
        rows = np.array([[BOS, *context, word] for word in words])
        logs = model.log_probabilities(rows.reshape(-1)).reshape(rows.shape)[:, -1]
        assert (10**logs).sum() == pytest.approx(1, abs=1e-5)


def test_probabilities_worked_out_by_hand():
    """Text: "a b", "a b", "a c"; bigrams <s>a 3, ab 2, ac 1, b</s> 2, c</s> 1; too few for the closed form."""
    model = train_ngrams([["a", "b"], ["a", "b"], ["a", "c"]], 2)
    assert discounts(np.array([3, 2, 1, 2, 1])) == (0.5, 1.0, 1.5)
    # Unigrams count what they follow: a 1, b 1, c 1, </s> 2, of 5. Taken: 0.5, 0.5, 0.5, 1; so 2.5 is left for 5 words.
    even = 2.5 / 5 / 5
    a, b, c, end, unknown = 0.5 / 5 + even, 0.5 / 5 + even, 0.5 / 5 + even, 1 / 5 + even, even
    assert a + b + c + end + unknown == pytest.approx(1)
    # After a: b 2 - 1, c 1 - 0.5, of 3; 1.5 / 3 is left. After <s>: a 3 - 1.5, of 3. After b: </s> 2 - 1, of 2.
    expected = [1.5 / 3 + 1.5 / 3 * a, 1 / 3 + 1.5 / 3 * b, 1 / 2 + 1 / 2 * end]
    tokens = model.encode([["a", "b"]])
    np.testing.assert_allclose(10 ** model.log_probabilities(tokens)[1:], expected, rtol=1e-6)
    never = model.log_probabilities(model.encode([["a", "x"]]))
    np.testing.assert_allclose(10 ** never[1:], [expected[0], 1.5 / 3 * unknown, end], rtol=1e-6)
    assert perplexities([tokens], model)[0] == pytest.approx(math.prod(expected) ** (-1 / 3), rel=1e-6)


def test_discounts_are_chen_and_goodmans():
    counts = np.repeat([1, 2, 3, 4, 9], [50, 20, 10, 5, 7])
    y = 50 / (50 + 2 * 20)
    assert discounts(counts) == pytest.approx((1 - 2 * y * 20 / 50, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10))
    assert discounts(np.array([1, 1, 2])) == (0.5, 1.0, 1.5)


def test_arpa_files_give_the_same_model_back(tmp_path):
    rng = np.random.default_rng(0)
    text = [["αβγδé,.x0"[i] for i in rng.integers(0, 9, 12)] for _ in range(40)]
    model = train_ngrams(text, 3, min_count=2)
    for name in ("m.arpa", "m.arpa.gz"):
        write_arpa(model, tmp_path / name)
        again = read_arpa(tmp_path / name)
        assert again.words == model.words
        for ours, theirs in zip(model.orders, again.orders, strict=True):
            np.testing.assert_array_equal(ours.keys, theirs.keys)
            np.testing.assert_allclose(ours.logs, theirs.logs, rtol=1e-6)
            np.testing.assert_allclose(ours.backoffs, theirs.backoffs, rtol=1e-6, atol=1e-9)
    lines = (tmp_path / "m.arpa").read_text().split("\n")
    assert lines[:3] == ["\\data\\", f"ngram 1={len(model.words)}", f"ngram 2={len(model.orders[1].keys)}"]
    assert sum("\t" in line for line in lines) == sum(len(order.keys) for order in model.orders)
    model.save(tmp_path / "saved")
    tokens = model.encode(text[:3])
    np.testing.assert_array_equal(
        NGramModel.load(tmp_path / "saved").log_probabilities(tokens), model.log_probabilities(tokens)
    )
    with pytest.raises(UserError, match="holds no n-gram model"):
        NGramModel.load(tmp_path)


def test_kenlm_gives_the_same_probabilities(tmp_path):
    kenlm = pytest.importorskip("kenlm")
    text = [[f"w{i * j % 13}" for j in range(i % 7 + 1)] for i in range(80)]
    model = train_ngrams(text, 4)
    write_arpa(model, tmp_path / "m.arpa")
    theirs = kenlm.Model(str(tmp_path / "m.arpa"))
    for sentence in [*text[:20], ["w1", "never", "w2"]]:
        ours = model.log_probabilities(model.encode([sentence]))[1:]
        np.testing.assert_allclose(ours, [s[0] for s in theirs.full_scores(" ".join(sentence))], rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no ARPA file"),
        ("\\1-grams:\n-1 <s>\n\\end\\", "cannot be read"),
        ("\\1-grams:\n-1\t<s>\n", "without"),
        ("\\1-grams:\n-1\t<s>\n\\end\\", "has no unigram <unk> </s>"),
        ("\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\t<unk>\n\\2-grams:\n-1\tx <s>\n\\end\\", "beginning that is not there"),
        ("\\2-grams:\n-1\tx <s>\n\\end\\", "no ARPA file"),
    ],
)
def test_bad_arpa_files_are_told(tmp_path, text, message):
    (tmp_path / "x.arpa").write_text(text)
    with pytest.raises(UserError, match=message):
        read_arpa(tmp_path / "x.arpa")


def test_nothing_to_learn_from_is_told():
    with pytest.raises(UserError, match="no text"):
        train_ngrams([], 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab 1\n\tÉ.", max_size=12), max_size=4))
def test_texts_become_the_sentences_of_their_lines(texts):
    model = train_ngrams([["a", "b", "."], ["é", "0"]], 2)
    for text in texts:
        words = [
            [w if w in model.ids else "<unk>" for w in naive_words(line)]
            for line in text.lower().replace("1", "0").split("\n")
        ]
        expected = model.encode([sentence for sentence in words if sentence])
        np.testing.assert_array_equal(tokens_of(text, model), expected)


def naive_words(line: str) -> list[str]:
    words, inside = [], False
    for character in line:
        is_word = character.isalnum()
        if is_word and inside:
            words[-1] += character
        elif not character.isspace():
            words.append(character)
        inside = is_word
    return words


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 2**64 - 2), max_size=200), st.lists(st.integers(0, 2**64 - 2), max_size=50))
def test_key_tables_find_what_is_there(keys, others):
    array = np.array(sorted(keys), np.uint64)
    table = KeyTable(array)
    np.testing.assert_array_equal(table.find(array), np.arange(len(array)))
    place = {key: row for row, key in enumerate(sorted(keys))}
    asked = np.array(others, np.uint64)
    np.testing.assert_array_equal(table.find(asked), [place.get(key, -1) for key in others])


def test_unknown_words_share_one_probability():
    model = train_ngrams([["a", "b"], ["<unk>", "a"]], 2)
    assert model.encode([["zz", "<unk>"]]).tolist()[1:3] == [UNK, UNK]
