"""Process reward models: rows, marks, the loss, cutting, grading, and a run."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_model import SMALL, scored_model

from leyden.align.process_rewards import LabelledSteps
from leyden.align.process_rewards.batches import SolutionBatches, fit_solutions
from leyden.align.process_rewards.objective import marks_of, step_losses
from leyden.align.process_rewards.scorer import LearnedGrader, ProcessRewardModel
from leyden.align.process_rewards.solutions import (
    SolutionCounts,
    begun_responses,
    encode_steps,
    read_solutions,
    solution_of,
    steps_of,
    tokenise_solutions,
)
from leyden.align.rewards.rows import RowSettings, grade_rows
from leyden.checkpoint import save
from leyden.core.errors import UserError
from leyden.data import shards_in_memory
from leyden.data.readers.problem import Problem
from leyden.model import HybridLM
from leyden.ops import IGNORE_INDEX
from leyden.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("empty_plots")

ROW = {"prompt": "2 + 3 * 4?", "steps": ["3 * 4 = 12.", "2 + 12 = 15.", "So 15."], "labels": [True, 0, None]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["2 + 3 = 5. So 5.\n" * 9], vocab_size=264)


@pytest.fixture(scope="module")
def model() -> HybridLM:
    return scored_model()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": None}, "no steps"),
        ({"steps": "3 * 4 = 12."}, "no steps"),
        ({"labels": [True]}, "bad labels"),
        ({"labels": [True, 0.5, None]}, "bad labels"),
        ({"labels": [True, "no", None]}, "bad labels"),
        ({"labels": [None] * 3}, "no labels"),
        ({"steps": ["a", " ", "b"]}, "empty step"),
        ({"prompt": None}, "no prompt"),
    ],
)
def test_rows_that_say_nothing_of_steps_are_set_aside(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Problem) as found:
        solution_of({**ROW, **change}, "f:1", "f")
    assert found.value.reason == reason


def test_labels_are_marks_behind_the_steps(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = {"question": "1 + 1?", "completions": ["2."], "labels": [1]}
    place, rejects, counts = tmp_path / "s.jsonl", [], SolutionCounts()
    place.write_text("\n".join(map(json.dumps, [ROW, other, {"prompt": "x"}])), encoding="utf-8")
    made = list(tokenise_solutions(read_solutions([str(place)], rejects), tokenizer, counts))
    assert [reject.reason for reject in rejects] == ["no steps"]
    assert (counts.rows, counts.answers, counts.answer_tokens) == (2, 3, 2)
    ids, ends = encode_steps([{"role": "user", "content": ROW["prompt"]}], ROW["steps"], tokenizer)
    assert made[0].tokens.tolist() == ids.tolist() and made[0].learned is not None
    assert np.flatnonzero(made[0].learned).tolist() == [ends[0] + 1, ends[0] + 2, ends[1] + 1]
    begins = [ends[0] - len(tokenizer.encode(ROW["steps"][0])), *ends[:-1] + 2]
    texts = [tokenizer.decode(ids[begin + 1 : end + 1].tolist()) for begin, end in zip(begins, ends, strict=True)]
    assert texts == ROW["steps"]
    with pytest.raises(UserError, match="have no solutions"):
        list(read_solutions(["tasks:short"], []))


def test_blank_lines_part_steps_or_lines_where_there_are_none() -> None:
    assert steps_of("\n a\nb \n \t\n\n c\r\n\n") == ("a\nb", "c")
    assert steps_of(" \n\n ") == ()
    assert steps_of("a\n b\r\nc") == ("a", "b", "c") and steps_of("a") == ("a",)
    assert begun_responses(" a\n b\r\nc ") == ["a\n ", "a\n b\r\n", "a\n b\r\nc"]
    assert begun_responses("a\nb\n \n\nc") == ["a\nb\n \n\n", "a\nb\n \n\nc"]


@given(st.lists(st.sampled_from([None, True, False]), min_size=1, max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_marks_say_the_labels_however_a_solution_is_cut(labels, data):
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(labels), max_size=len(labels)))
    learned, ends, told = [False] * 3, [], []
    for label, length in zip(labels, lengths, strict=True):
        learned += [False] * length
        ends.append(len(learned) - 1)
        told.append(label)
        learned += [label is not None, label is True]
    seq_len = data.draw(st.integers(4, len(learned) + 2))
    shards = shards_in_memory([list(range(len(learned)))], vocab_size=99, learned=[np.array(learned)])
    whole = [(end, label) for end, label in zip(ends, told, strict=True) if label is not None and end + 2 < seq_len]
    if not whole and len(learned) > seq_len:
        # A wrong step whose first mark alone fits is not enough, since it would be that of a right one cut in half.
        with pytest.raises(UserError, match="has a labelled step within"):
            fit_solutions(shards, seq_len, "cut")
        return
    if not whole:
        return
    row = SolutionBatches(fit_solutions(shards, seq_len, "cut"), seq_len=seq_len, batch_tokens=seq_len, seed=0).batch(0)
    found, right = marks_of(row.labels)
    first = int((row.tokens[0] == 0).nonzero()[0])
    assert [(int(end) - first, bool(right[0, end])) for end in found[0].nonzero()] == whole


def test_the_loss_and_its_gradient_are_their_formulas() -> None:
    scores = torch.tensor([-40.0, -1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    right = torch.tensor([False, True, False, True])
    losses = step_losses(scores, right)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    for index, (score, label) in enumerate(zip(scores.tolist(), right.tolist(), strict=True)):
        chance = 1 / (1 + math.exp(-score))
        assert losses[index].item() == pytest.approx(-math.log(chance if label else 1 - chance), abs=1e-12)
        assert gradient[index].item() == pytest.approx(chance - label, abs=1e-12)


def test_the_objective_scores_ends_of_steps(model: HybridLM) -> None:
    labels = torch.full((1, 12), IGNORE_INDEX)
    labels[0, [2, 5, 6, 10]] = 7  # a wrong step, a right one, and a wrong one of another document
    from leyden.data import Batch

    tokens = torch.randint(300, (1, 12), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, labels, torch.tensor([0, 8, 12], dtype=torch.int32))
    double = HybridLM(model.config, seed=3).double().eval()
    features = double.features(tokens, cu_seqlens=batch.cu_seqlens)
    sums = LabelledSteps().sums(double, features, batch)
    scores = double.scores(features.hidden)[0, [2, 5, 10]].tolist()
    signs = [-1, 1, -1]
    expected = sum(math.log1p(math.exp(-sign * score)) for sign, score in zip(signs, scores, strict=True))
    assert sums.loss.item() == pytest.approx(expected, rel=1e-10) and sums.weight == 3
    assert sums.metrics["accuracy"] == sum(sign * score > 0 for sign, score in zip(signs, scores, strict=True))
    assert sums.metrics["right"] == 1


def test_responses_are_graded_by_their_steps(model: HybridLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(model, tokenizer, tmp_path / "m", "leyden")
    grader = LearnedGrader("process", str(tmp_path / "m"))
    rows = [
        {"prompt": ROW["prompt"], "response": "\n\n".join(ROW["steps"])},
        {"prompt": ROW["prompt"], "response": "ignored", "steps": ROW["steps"]},
        {"prompt": ROW["prompt"], "response": " "},
        {"prompt": ROW["prompt"], "response": "", "steps": ["a", 3]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second, *broken = grade_rows(file, RowSettings("process", model=grader))
    assert first.components == pytest.approx(second.components, abs=1e-6)
    assert all(one.reward is None and "no steps" in one.reason for one in broken)
    ids, ends = encode_steps([{"role": "user", "content": ROW["prompt"]}], ROW["steps"], tokenizer)
    chances = [
        model.scores(model.features(torch.tensor(ids[None, : end + 1], dtype=torch.int64)).hidden)[0, -1]
        .sigmoid()
        .item()
        for end in ends
    ]
    assert first.reward == pytest.approx(math.prod(chances), abs=1e-5)
    assert first.components["least"] == pytest.approx(min(chances), abs=1e-5)
    assert first.components["last"] == pytest.approx(chances[-1], abs=1e-5) and first.components["steps"] == 3


def test_a_run_learns_which_steps_are_right(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from leyden.recipes.loader import parse_recipe
    from leyden.recipes.runner import run

    tokenizer.save(tmp_path / "tokenizer")
    rows = [
        {
            "prompt": f"Count {n}.",
            "steps": ["So it is.", "No." if n % 3 else "So it is."],
            "labels": [1, int(n % 3 == 0)],
        }
        for n in range(40)
    ]
    (tmp_path / "steps.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shape = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    stage = {"name": "p", "objective": "process_reward", "steps": 12, "seq_len": 160, "batch_tokens": 640, "lr": 3e-3}
    recipe = {
        "model": {"preset": "tiny", **shape, "layer_types": list(SMALL["layer_types"])},
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
        "data": {"solutions": [str(tmp_path / "steps.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32"},
        "stage": [stage],
        "evaluate": {"every_steps": 6},
    }
    final = run(parse_recipe(recipe, "test"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out_accuracy"] > 0.9 and lines[-1]["loss"] < lines[0]["loss"]
    found = ProcessRewardModel.find(final).grade({"prompt": "Count 7.", "response": "So it is.\n\nNo."})
    assert found.reward is not None and found.reward < 0.5 and "step 2 of 2" in found.reason
    with pytest.raises(UserError, match="solutions are not mixed"):
        mixed = {**stage, "mixture": {"point": [{"weights": {"all": 1}}]}}
        parse_recipe({**recipe, "stage": [mixed]}, "test")
