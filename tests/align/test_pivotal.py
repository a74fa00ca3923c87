"""Pivotal tokens are found with few questions, and pairs of single tokens carry loss on these tokens alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.align.chats import chat_of, preference_of
from leyden.align.preference.pairs import PairCounts, tokenise_pairs
from leyden.align.preference.pivotal import Pivot, pivotal_pair, pivotal_tokens
from leyden.data.readers.problem import Problem
from leyden.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


@given(length=st.integers(0, 200), places=st.sets(st.integers(0, 199), max_size=4), sign=st.sampled_from([1, -1]))
def test_the_tokens_that_change_the_chance_are_found(length, places, sign):
    asked = []

    def success(prefix):
        asked.append(len(prefix))
        return 0.5 + sign * 0.1 * sum(place < len(prefix) for place in places)

    found = pivotal_tokens(range(length), success, least_gap=0.09)
    assert [pivot.place for pivot in found] == sorted(place for place in places if place < length)
    assert all(pivot.after - pivot.before == pytest.approx(sign * 0.1) for pivot in found)
    assert len(asked) == len(set(asked)) <= 2 + 2 * len(found) * math.ceil(math.log2(max(2, length)))


def test_small_changes_are_no_pivots():
    assert pivotal_tokens(range(50), lambda prefix: len(prefix) / 100, least_gap=0.2) == []


def test_the_pair_has_the_pivot_and_the_token_that_does_the_opposite(tokenizer):
    response = tokenizer.encode("It is so.")
    tokens = {text: tokenizer.encode(text)[0] for text in "abcd"}
    chances = {tokens["a"]: 0.9, tokens["b"]: 0.3, tokens["c"]: 0.1, tokens["d"]: 0.8}
    response[2] = tokens["a"]

    def pair(pivot, others):
        return pivotal_pair("q", response, pivot, others, lambda prefix: chances[prefix[-1]], tokenizer)

    prefix = tokenizer.decode(response[:2])
    others = [tokens["b"], tokens["c"], tokens["a"]]
    assert pair(Pivot(2, 0.5, 0.9), others) == {"prompt": "q", "prefix": prefix, "chosen": "a", "rejected": "c"}
    assert pair(Pivot(2, 0.5, 0.9), [tokens["d"]]) is None, "it differs by 0.1"
    assert pair(Pivot(2, 0.5, 0.0), others) == {"prompt": "q", "prefix": prefix, "chosen": "b", "rejected": "a"}
    assert pair(Pivot(2, 0.5, 0.9), [tokens["a"]]) is None
    byte = tokenizer.encode_bytes(b"\xff")[0]  # no text
    chances[byte] = 0.0
    assert pair(Pivot(2, 0.5, 0.9), [byte]) is None


@pytest.mark.parametrize("prefix", ["", "Yes, "])
def test_the_tokens_after_the_prefix_alone_are_learned(tokenizer, prefix):
    row = {"prompt": "Is it so?", "prefix": prefix, "chosen": " ", "rejected": "no"}
    counts = PairCounts()
    made = list(tokenise_pairs([preference_of(row, "f:1", "f")], tokenizer, counts))
    assert (counts.rows, len(made)) == (1, 2)
    question = {"role": "user", "content": "Is it so?"}
    begun = [question, {"role": "assistant", "content": prefix}] if prefix else [question]
    before = tokenizer.encode_chat(begun, continue_final_message=bool(prefix))
    for document, text in zip(made, (" ", "no"), strict=True):
        assert document.learned is not None
        np.testing.assert_array_equal(document.tokens[~document.learned], before)
        assert tokenizer.decode(document.tokens[document.learned]) == text


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"chosen": ""}, "bad messages"), ({"chosen": "b"}, "equal answers"), ({"prompt": ""}, "no answer")],
)
def test_what_is_no_pair_of_continuations_is_set_aside(change, reason):
    row = {"prompt": "q", "prefix": "p", "chosen": "a", "rejected": "b", **change}
    with pytest.raises(Problem) as problem:
        preference_of(row, "id", "source")
    assert problem.value.reason == reason
    with pytest.raises(Problem, match="no whole answer"):
        chat_of(row, "id", "source")
