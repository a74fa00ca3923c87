"""Items from text and files, shuffled words, and the log-likelihood of choices against the model read one by one."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.study.items import (
    Item,
    ItemSettings,
    build_items,
    items_fingerprint,
    read_items,
    shuffle_words,
    write_items,
)
from leyden.study.likelihood import choice_log_likelihoods
from leyden.tokenizer import Tokenizer

WORDS = [
    "the",
    "tower",
    "kept",
    "lightning",
    "in",
    "a",
    "glass",
    "jar",
    "while",
    "rain",
    "fell",
    "on",
    "every",
    "quiet",
    "roof",
    "of",
    "that",
    "old",
    "town",
]
SETTINGS = ItemSettings(per_benchmark=12, context_chars=40, choice_chars=25)


def prose(seed: int, words: int = 200) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + f" {seed}"


DOCUMENTS = [prose(seed) for seed in range(6)]


def test_built_items_are_what_they_say() -> None:
    items = build_items(DOCUMENTS, SETTINGS, seed=0)
    assert items == build_items(DOCUMENTS, SETTINGS, seed=0)
    assert items != build_items(DOCUMENTS, SETTINGS, seed=1)
    assert len(items) == 36
    for item in items:
        right = item.choices[item.answer]
        (home,) = [text for text in DOCUMENTS if item.context + right in text]
        assert len(item.context) == 40
        assert len(set(item.choices)) == len(item.choices) == 4
        assert all(choice[0] == " " and choice[1] != " " for choice in item.choices)
        wrong = [choice for choice in item.choices if choice != right]
        if item.benchmark == "word_order":
            assert all(sorted(choice.split()) == sorted(right.split()) for choice in wrong)
        elif item.benchmark == "same_document":
            assert all(choice in home for choice in wrong)
        else:
            assert all(any(choice in text for text in DOCUMENTS if text != home) for choice in wrong)
    assert {item.answer for item in items} == {0, 1, 2, 3}


def test_too_little_text_for_items() -> None:
    with pytest.raises(UserError, match="give 0 items of benchmark 'other_document', not 12"):
        build_items(["short"], SETTINGS, seed=0)
    with pytest.raises(UserError, match="benchmark 'other_document'"):
        build_items(DOCUMENTS[:1], SETTINGS, seed=0)  # no other document to take from


def test_shuffled_words_are_the_same_words_between_the_same_spaces() -> None:
    text = "  one two\n\n\tthree four  five\n"
    shuffled = shuffle_words(text, "s")
    assert shuffled != text
    assert sorted(shuffled.split()) == sorted(text.split())
    assert [c for c in shuffled if c.isspace()] == [c for c in text if c.isspace()]
    assert shuffled == shuffle_words(text, "s") != shuffle_words(text, "t")
    assert shuffle_words("", "s") == ""


def test_items_are_read_back(tmp_path: Path) -> None:
    items = [Item("a", "b", "Grüße,", (" x", " y"), 1), Item("b", "b", "", ("1", "2", "3"), 0)]
    write_items(items, tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl") == items
    assert items_fingerprint(items) != items_fingerprint(items[::-1])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is no item"),
        ("[]", "is no item"),
        ('{"id": "a"}', "is no item"),
        (json.dumps({"id": "a", "benchmark": "b", "context": "", "choices": ["x"], "answer": 0}), "two choices"),
        (json.dumps({"id": "a", "benchmark": "b", "context": "", "choices": ["x", ""], "answer": 0}), "none empty"),
        (json.dumps({"id": "a", "benchmark": "b", "context": "", "choices": ["x", "y"], "answer": 2}), "counts from 0"),
        (json.dumps({"id": 1, "benchmark": "b", "context": "", "choices": ["x", "y"], "answer": 0}), "are texts"),
        ("", "holds no items"),
    ],
)
def test_items_that_are_none(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "items.jsonl").write_text(line)
    with pytest.raises(UserError) as refused:
        read_items(tmp_path / "items.jsonl")
    assert says in str(refused.value)


def test_an_item_that_is_there_twice_or_no_file(tmp_path: Path) -> None:
    item = json.dumps({"id": "a", "benchmark": "b", "context": "", "choices": ["x", "y"], "answer": 0})
    (tmp_path / "items.jsonl").write_text(f"{item}\n{item}\n")
    with pytest.raises(UserError, match="item 'a' of benchmark 'b' is there twice"):
        read_items(tmp_path / "items.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_items(tmp_path / "none.jsonl")


def test_choices_are_scored_as_when_read_alone(random_model: Callable[..., HybridLM]) -> None:
    tokenizer = Tokenizer.train(DOCUMENTS, vocab_size=290)
    model = random_model(vocab_size=290)
    items = build_items(DOCUMENTS, SETTINGS, seed=0)
    told: list[int] = []
    found = choice_log_likelihoods(model, tokenizer, items, told.append)
    assert sum(told) == sum(len(item.choices) for item in items)
    for item, values in list(zip(items, found, strict=True))[::7]:
        context = [tokenizer.bos_id, *tokenizer.encode(item.context)]
        for choice, value in zip(item.choices, values, strict=True):
            ids = tokenizer.encode(choice)
            with torch.no_grad():
                log_p = torch.log_softmax(model(torch.tensor([context + ids])), dim=-1)[0]
            places = range(len(context) - 1, len(context) - 1 + len(ids))
            assert value == pytest.approx(sum(float(log_p[p, i]) for p, i in zip(places, ids, strict=True)), rel=1e-4)


def test_items_longer_than_the_model(random_model: Callable[..., HybridLM]) -> None:
    tokenizer = Tokenizer.train(DOCUMENTS, vocab_size=290)
    model = random_model(vocab_size=290, max_position_embeddings=8)
    with pytest.raises(UserError, match="the model 8 positions"):
        choice_log_likelihoods(model, tokenizer, build_items(DOCUMENTS, SETTINGS, seed=0))
