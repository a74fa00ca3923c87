"""Multi-query associative recall: what its sequences hold, and how they are scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Never, Oracle, make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.prompts import evenly
from leyden.evaluate.sources import EngineSource
from leyden.evaluate.task import Answer
from leyden.evaluate.tasks.mqar import Mqar, recall_sequence
from leyden.model import HybridLM, preset


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"))


@settings(max_examples=30)
@given(pairs=st.integers(1, 24), extra=st.integers(0, 200), size=st.integers(50, 300), seed=st.integers(0, 2**32))
def test_every_value_asked_for_is_determined_by_the_pairs(pairs, extra, size, seed):
    vocabulary = np.arange(7, 7 + size)
    length = 4 * pairs + extra
    drawn = recall_sequence(vocabulary, length, pairs, np.random.default_rng(seed))
    assert drawn.tokens.shape == (length,)
    assert np.isin(drawn.tokens, vocabulary).all()
    keys, values = drawn.tokens[0 : 2 * pairs : 2], drawn.tokens[1 : 2 * pairs : 2]
    assert len(set(keys)) == pairs
    assert (keys < 7 + size // 2).all() and (values >= 7 + size // 2).all()
    value_of = dict(zip(keys.tolist(), values.tolist(), strict=True))
    asked = drawn.tokens[drawn.answers - 1]
    assert sorted(asked) == sorted(keys)  # each once
    assert [value_of[key] for key in asked.tolist()] == drawn.tokens[drawn.answers].tolist()
    assert (np.diff(drawn.answers) > 0).all() and (drawn.answers >= 2 * pairs).all()
    others = np.delete(drawn.tokens, np.concatenate([np.arange(2 * pairs), drawn.answers, drawn.answers - 1]))
    assert not np.isin(others, keys).any()


def test_questions_come_soon_by_the_power_law():
    generator = np.random.default_rng(0)
    vocabulary = np.arange(400)
    firsts = [recall_sequence(vocabulary, 1002, 1, generator).answers[0] // 2 for _ in range(900)]
    places = np.arange(1, 501)
    weights = places ** (0.01 - 1)
    expected = np.cumsum(weights / weights.sum())
    for quantile in (0.25, 0.5, 0.75):
        place = int(np.searchsorted(expected, quantile))
        assert np.mean(np.array(firsts) <= place + 1) == pytest.approx(expected[place], abs=0.06)


def test_scores_and_cells(subject):
    options = Options(lengths=(128,), pairs=(2, 8), samples=3)
    (line,) = evaluate(Oracle(lambda question: "yes"), subject, ["mqar"], options)
    assert (line["value"], line["n"]) == (1, 6)
    assert [(cell["length"], cell["pairs"], cell["value"]) for cell in line["cells"]] == [(128, 2, 1), (128, 8, 1)]
    (line,) = evaluate(Never(), subject, ["mqar"], options)
    assert line["value"] == 0


def test_only_the_values_asked_for_count(subject):
    task = Mqar(Options(lengths=(100,), pairs=(4,), samples=1), subject)
    (item,) = task.items()
    question = item.build()
    drawn = task._sequence(100, 4, 0)
    assert list(question.prompt) == [subject.tokenizer.bos_id, *drawn.tokens.tolist()]
    greedy = np.zeros(99, bool)
    assert task.grade(item, question, Answer("", 100, np.zeros(99), greedy)) == {"score": 0.0}
    greedy[drawn.answers[:3]] = True
    assert task.grade(item, question, Answer("", 100, np.zeros(99), greedy)) == {"score": 0.75}


def test_an_engine_is_scored_by_its_most_probable_tokens(subject):
    tokenizer = subject.tokenizer
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes = {"head_dim": 16, "rotary_dim": 8, "intermediate_size": 16}
    model = HybridLM(preset("tiny", vocab_size=tokenizer.vocab_size, **shape, **sizes)).eval()
    (line,) = evaluate(EngineSource(model, tokenizer), subject, ["mqar"], Options(lengths=(64,), pairs=(4,), samples=2))
    assert line["n"] == 2 and 0 <= line["value"] < 0.5


def test_what_cannot_be_asked_is_refused(subject):
    for options, says in (
        (Options(lengths=(64,), pairs=(16,)), "16 pairs and their questions take 65"),
        (Options(lengths=(4096,), pairs=(10_000,)), "10000 pairs were asked for; a vocabulary of"),
    ):
        with pytest.raises(UserError, match=says):
            list(evaluate(Oracle(), subject, ["mqar"], options))


def test_a_limit_takes_from_every_cell_alike(subject):
    options = {"lengths": (64, 128), "pairs": (2, 4, 8), "samples": 8}
    whole = Mqar(Options(**options), subject).items()
    assert len(whole) == 48
    some = Mqar(Options(**options, limit=18), subject).items()
    assert [item.id for item in some] == [item.id for item in whole if item.facts["sample"] < 3]
    two = Mqar(Options(**options, limit=2), subject).items()
    assert [(item.facts["length"], item.facts["sample"]) for item in two] == [(64, 0), (128, 0)]


@settings(max_examples=60)
@given(cells=st.lists(st.integers(0, 6), min_size=1, max_size=40), limit=st.integers(1, 45))
def test_evenly(cells, limit):
    things = list(enumerate(cells))
    taken = evenly(things, limit, lambda thing: thing[1])
    assert len(taken) == min(limit, len(things)) and taken == sorted(set(taken))
    left = {cell: cells.count(cell) - sum(thing[1] == cell for thing in taken) for cell in cells}
    counts = {cell: sum(thing[1] == cell for thing in taken) for cell in cells}
    for cell in cells:  # a cell with something left has at most one less than any other
        assert left[cell] == 0 or counts[cell] >= max(counts.values()) - 1
