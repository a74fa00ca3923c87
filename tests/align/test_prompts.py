"""``leyden prompts``: one normal form, tags, duplicates, contamination, pass rates, and weights that stages draw by."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.ngrams import Said, ngram_sets
from leyden.align.prompts import PromptRow, read_prompts
from leyden.align.prompts.build import PromptSettings, build_prompts
from leyden.align.prompts.difficulty import PassRate
from leyden.align.prompts.rows import prompt_row
from leyden.align.prompts.tags import difficulty_of, domain_of, task_of
from leyden.align.rollouts.prompts import Prompts
from leyden.core.errors import UserError
from leyden.data.readers.problem import Problem
from leyden.tokenizer import Tokenizer


def written(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("row", "asked", "graded_by", "task"),
    [
        ({"question": "2 + 2?", "answer": "so #### 4"}, "2 + 2?", {"reference": "so #### 4"}, "mathematics"),
        ({"problem": "x?", "solution": "\\boxed{1}"}, "x?", {"reference": "\\boxed{1}"}, "mathematics"),
        ({"prompt": "def f", "test": "assert f", "entry_point": "f"}, "def f", {"tests": "assert f"}, "code"),
        ({"prompt": "add", "test_list": ["assert 1"]}, "add", {"tests": ["assert 1"]}, "code"),
        ({"prompt": "hi", "instruction_id_list": [], "answer": "x"}, "hi", {}, "instructions"),
        ({"prompt": "who?", "reward_model": {"ground_truth": "me"}}, "who?", {"reference": "me"}, "question"),
        ({"instruction": "add", "input": "1 2", "output": "3"}, "add\n\n1 2", {}, "open"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a", {}, "open"),
        ({"prompt": "hi", "task": "greeting"}, "hi", {}, "greeting"),
    ],
)
def test_common_schemas(row, asked, graded_by, task):
    made = prompt_row(row, "file:1", "file")
    assert made.text == made.row["prompt"] == asked and task_of(made) == task
    assert {name: made.row.get(name) for name in graded_by} == graded_by
    assert ("reference" in made.row) == ("reference" in graded_by)
    assert made.id == prompt_row({"prompt": asked}, "other", "x").id


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"x": 1},
        {"prompt": ""},
        {"prompt": []},
        {"messages": [{"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "tool_call_id": "c"}]},
    ],
)
def test_rows_without_a_prompt(row):
    with pytest.raises(Problem):
        prompt_row(row, "file:1", "file")


def test_no_prompt_at_all(tmp_path):
    with pytest.raises(UserError, match=r"there is no prompt \(no prompt, not JSON\)"):
        read_prompts([written(tmp_path / "bad.jsonl", ["{", {"x": 1}])], [])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="there is no"):
        read_prompts([str(tmp_path / "empty.jsonl")], [])


def test_tags():
    def of(text):
        return domain_of(prompt_row({"prompt": text}, "", ""))

    assert of("Write a Python function.") == "code" and of("How many apples?") == "mathematics"
    assert of("Tell me a joke") == "other" and of("Translate to French") == "translation"
    assert domain_of(prompt_row({"prompt": "x", "category": "mine"}, "", "")) == "mine"
    assert domain_of(prompt_row({"prompt": "x", "reference": "3"}, "", "")) == "mathematics"
    assert domain_of(prompt_row({"prompt": "x", "tests": ["assert 1"]}, "", "")) == "code"
    assert of("Let f be the function that maps x to x + 1.") != "code"
    rates = [None, 0.0, 0.1, 0.5, 0.9, 1.0]
    assert [difficulty_of(rate) for rate in rates] == ["unknown", "unsolved", "hard", "medium", "easy", "solved"]


LONG = "Anna goes to the market with twelve baskets of plums and sells five of them to her neighbours before noon"


def test_what_is_dropped_and_why(tmp_path):
    rows = [
        {"prompt": "Count the stars."},
        {"prompt": "count  THE stars."},  # a copy
        {"prompt": f"{LONG} on Monday in spring. How many baskets are left for the other people of the village?"},
        {"prompt": f"{LONG} on Monday in spring. How many baskets are left for the other people of the town?"},  # near
        {"prompt": "Copied from the exam!"},
        {
            "prompt": "Before you answer, think: a train leaves the old station of Leyden at nine and arrives in Delft "
            "at ten. Now say something quite different about trains and about their drivers and guards, and be kind."
        },
        "no json",
        {"prompt": "Name a colour."},
    ]
    exam = [
        {"question": "Copied from the exam!", "answer": "yes"},
        {
            "question": "Think: a train leaves the old station of Leyden at nine and arrives in Delft at ten. How long "
            "is the journey, in minutes, if both clocks are right and nobody stops it on its way?",
            "answer": "60",
        },
    ]
    settings = PromptSettings(
        (written(tmp_path / "prompts.jsonl", rows),), (written(tmp_path / "exam.jsonl", exam),), held_out=0.5
    )
    report = build_prompts(settings, tmp_path / "out", None)
    kept = lines(tmp_path / "out" / "train.jsonl") + lines(tmp_path / "out" / "held_out.jsonl")
    assert sorted(row["prompt"][:5] for row in kept) == ["Anna ", "Name ", "count"]  # of copies the longest stays
    assert report["trained_on"] and report["held_out"] and report["set_aside"] == {"not JSON": 1}
    found = report["contamination"]["exam.jsonl"]
    assert (found["prompts"], found["share"]) == (2, 2 / 7) and len(found["by"]) == 2 and found["by"]["n-grams"] == 1
    dropped = lines(tmp_path / "out" / "dropped.jsonl")
    assert Counter(row["evaluation_set"] for row in dropped) == {None: 2, "exam.jsonl": 2}
    assert any(row["reason"] == "contaminated by exam.jsonl" for row in dropped)
    assert any(row["detail"].startswith("exam.jsonl, line 2, question: ") for row in dropped)
    assert "near-duplicate" in report["dropped"] and not (tmp_path / "out" / "work").exists()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no items|no file of items"):
        build_prompts(PromptSettings(settings.paths, (str(tmp_path / "empty.jsonl"),)), tmp_path / "none", None)
    with pytest.raises(UserError, match="none is left"):
        build_prompts(PromptSettings(settings.paths, settings.paths), tmp_path / "none", None)


def test_ngrams_said_before():
    first, second, third, empty = ngram_sets(["a b c d e f", "A, b c d; e g", "x", ""], 3)
    said = Said()
    assert said.share(first) == (0.0, None) == said.share(empty)
    said.keep(first, 7)
    assert said.share(second) == (3 / 4, 7) and said.share(first) == (1.0, 7) and said.share(third) == (0.0, None)


def test_weights_prefer_middling_success():
    weights = [PassRate(8, passed).weight for passed in range(9)]
    assert weights == pytest.approx(weights[::-1]) and max(weights) == weights[4] == 1 and weights[0] > 0.15
    assert np.all(np.diff(weights[:5]) > 0) and PassRate(0, 0).weight == 1 and PassRate(0, 0).rate is None
    assert weights[3] == pytest.approx(4 * (3.5 / 9) * (5.5 / 9))


class Rows:
    def __init__(self, weights):
        self.weights = weights

    def prompts(self):
        return [{"prompt": f"number {n}", **({} if w is None else {"weight": w})} for n, w in enumerate(self.weights)]

    def score(self, row, response):
        return 0.0


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["number one is one, number two is two.\n" * 9], vocab_size=270)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 5).filter(lambda w: w == 0 or w > 1e-3), min_size=1, max_size=9), st.integers(0, 99))
def test_stages_draw_by_weight(tokenizer, weights, seed):
    if not any(weights):
        with pytest.raises(UserError, match="All prompts have weight 0"):
            Prompts(Rows(weights), tokenizer, longest=99, seed=seed)
        return
    prompts = Prompts(Rows(weights), tokenizer, longest=99, seed=seed)
    passes, size = 40, len(weights)
    drawn = Counter(prompt.text for prompt in prompts.at(0, passes * size))
    for number, weight in enumerate(weights):
        due = size * weight / sum(weights)
        assert abs(drawn[f"number {number}"] - passes * due) <= passes * 0.5 + 1
        one = Counter(prompt.text for prompt in prompts.at(0, size))[f"number {number}"]
        assert due - 1 - 1e-6 <= one <= due + 1 + 1e-6


def test_equal_weights_change_nothing_and_bad_ones_are_set_aside(tokenizer, capsys):
    plain, equal = (Prompts(Rows([w] * 5), tokenizer, longest=99, seed=3) for w in (None, 0.25))
    assert [p.text for p in plain.at(2, 9)] == [p.text for p in equal.at(2, 9)]
    bad = Prompts(Rows([1.0, -1.0, float("nan"), "x", True]), tokenizer, longest=99, seed=3)
    assert len(bad) == 1 and "4 bad weight" in capsys.readouterr().err


def test_a_prompt_is_what_it_says(tmp_path):
    path = written(tmp_path / "p.jsonl", [{"prompt": "a", "reference": "1"}, {"prompt": "b"}])
    one, other = read_prompts([path], [])
    assert isinstance(one, PromptRow) and one.id != other.id and one.row["reference"] == "1"
