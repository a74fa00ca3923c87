"""Merges are those of the plain algorithm and of the library's trainer; counts are of 64 bits; targets are reached."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from leyden.core.errors import UserError
from leyden.tokenizer import Tokenizer
from leyden.tokenizer.bpe import alphabet, assemble
from leyden.tokenizer.merges import learn
from leyden.tokenizer.words import WordCounts, WordGroup


def naive(words, num_tokens, min_count=2):
    """One merge at a time, by the rule: recount everything, take the commonest pair, the smallest of equals."""
    tokens = alphabet()
    ids = {token: index for index, token in enumerate(tokens)}
    texts = [([ids[bytes([byte])] for byte in word], count) for word, count in words.items()]
    pairs, found = [], []
    while len(tokens) < num_tokens:
        seen = Counter()
        for text, count in texts:
            for pair in zip(text, text[1:], strict=False):
                seen[pair] += count
        if not seen or max(seen.values()) < min_count:
            break
        best = min(seen, key=lambda pair: (-seen[pair], pair))
        pairs.append(best)
        found.append(seen[best])
        for text, _ in texts:
            place = 0
            while place < len(text) - 1:
                if (text[place], text[place + 1]) == best:
                    text[place : place + 2] = [len(tokens)]
                place += 1
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens, pairs, found, [len(text) for text, _ in texts]


WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=12).map(str.encode), st.integers(1, 9), max_size=25)


@settings(max_examples=300)
@given(WORDS, st.integers(256, 300))
def test_merges_are_those_of_the_plain_algorithm(words, num_tokens):
    merges = learn(list(words), np.array(list(words.values()), np.int64), num_tokens, alphabet=alphabet())
    tokens, pairs, found, lengths = naive(words, num_tokens)
    assert (merges.tokens, merges.pairs) == (tokens, pairs)
    assert merges.counts.tolist() == found
    assert merges.lengths.tolist() == lengths
    assert len(set(tokens)) == len(tokens)


def test_the_best_few_are_searched_again(monkeypatch):
    monkeypatch.setattr("leyden.tokenizer.merges._ACTIVE", 3)
    rng = np.random.default_rng(0)
    words = {bytes(rng.integers(97, 103, rng.integers(1, 9)).tolist()): int(rng.integers(1, 50)) for _ in range(300)}
    merges = learn(list(words), np.array(list(words.values())), 700, alphabet=alphabet())
    assert merges.pairs == naive(words, 700)[1]


def of_the_library(texts, num_tokens):
    """What the trainer of ``tokenizers`` learns."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = assemble(learn([], np.zeros(0, np.int64), 256, alphabet=alphabet())).pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    return json.loads(backend.to_str())["model"]


def test_a_vocabulary_is_that_of_the_library(texts):
    source = [Path(file).read_text(encoding="utf-8") for file in (json.__file__, pytest.__file__, st.__file__)]
    for given_texts, num_tokens in ((texts, 395), (source, 1500), (source, 100_000)):
        tokenizer = Tokenizer.train(given_texts, vocab_size=num_tokens + 5, allow_smaller=True)
        model = json.loads(tokenizer._backend.to_str())["model"]
        assert model == of_the_library(given_texts, num_tokens)


def test_the_commonest_pair_is_merged_first_beyond_32_bits():
    counts = WordCounts.of_counts({"ab": 2_200_000_000, "cd": 1_000_000, "abe": 1 << 55})
    _, training = Tokenizer.from_words(counts, vocab_size=264)
    assert training.merges.tokens[256:] == [b"ab", b"abe", b"cd"]
    assert training.merges.counts.tolist() == [2_200_000_000 + (1 << 55), 1 << 55, 1_000_000]


def test_counts_beyond_64_bits_are_refused():
    counts = WordCounts.of_counts({"ab": 1 << 61, "cd": 1 << 61})
    with pytest.raises(UserError, match="64 bits"):
        Tokenizer.from_words(counts, vocab_size=263)


def _rare_language():
    """Much of one language, little of another, each of its own letters."""
    rng = np.random.default_rng(1)

    def text(letters, num_words, num_distinct):
        lengths = rng.integers(3, 9, num_distinct)
        words = ["".join(rng.choice(list(letters), length)) for length in lengths]
        return " ".join(words[index] for index in (rng.pareto(0.8, num_words).astype(int) % num_distinct))

    counts = WordCounts()
    counts.add(text("abcdefgh", 60_000, 3000), WordGroup("en"))
    counts.add(text("παθηςκλμ", 1_500, 600), WordGroup("el"))
    return counts


def test_a_language_is_weighted_until_it_reaches_its_target():
    counts = _rare_language()
    _, plain = Tokenizer.from_words(counts, vocab_size=800)
    start = plain.rounds[0].bytes_per_token["el"]
    target = 1.2 * start
    tokenizer, training = Tokenizer.from_words(counts, vocab_size=800, targets={"el": target})
    last = training.rounds[-1]
    assert (len(plain.rounds), plain.rounds[0].weights) == (1, {"el": 1.0, "en": 1.0})
    assert 1 < len(training.rounds) <= 6
    assert last.weights["el"] > 1 == last.weights["en"]
    assert last.bytes_per_token["el"] > 0.99 * target
    assert tokenizer.vocab_size == 800
    # The figure is what encoding gives: a second way, through the finished tokenizer.
    words = counts.words[WordGroup("el")]
    tokens = sum(count * len(tokenizer.encode(word)) for word, count in words.items())
    size = sum(count * len(word.encode()) for word, count in words.items())
    assert last.bytes_per_token["el"] == pytest.approx(size / tokens, rel=1e-12)


def test_targets_that_cannot_be_are_named():
    counts = _rare_language()
    with pytest.raises(UserError, match="no text; there is text of el, en"):
        Tokenizer.from_words(counts, vocab_size=400, targets={"fr": 3.0})
    with pytest.raises(UserError, match="above 0"):
        Tokenizer.from_words(counts, vocab_size=400, targets={"el": 0.0})
    _, training = Tokenizer.from_words(counts, vocab_size=400, targets={"el": 100.0})
    assert len(training.rounds) <= 6
    assert training.rounds[-1].weights["el"] == 1000.0


def test_the_text_that_a_vocabulary_takes_is_extrapolated():
    rng = np.random.default_rng(2)
    # Words after Zipf's law out of endless many, so that the vocabulary goes on growing with the text.
    numbers = (rng.pareto(0.5, 120_000) * 20).astype(np.int64)
    text = " ".join(f"{number:x}" for number in numbers).translate(str.maketrans("0123456789", "ghijklmnop"))
    third = text[: len(text) // 3]
    supported = Tokenizer.train([text], vocab_size=10**6, allow_smaller=True).vocab_size
    with pytest.raises(UserError, match=f"not of {supported}") as caught:
        Tokenizer.train([third], vocab_size=supported)
    told, unit = str(caught.value).split("give about ")[1].split()[:2]
    asked = float(told) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert 0.6 * len(text) < asked < 1.6 * len(text)
    assert "half of it supports" in str(caught.value)
