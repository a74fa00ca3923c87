"""Validation by source and length, and tasks, while a recipe is trained: nothing of the training changes."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whole_runs import SMALL_MODEL, after_step, interrupt, metrics, on_build

from leyden.core.errors import Interrupted, UserError
from leyden.evaluate import Options, write_report
from leyden.evaluate.haystack import Haystack
from leyden.recipes import run
from leyden.recipes.batches import make_batches
from leyden.recipes.loader import parse_recipe
from leyden.recipes.outcome import tell_outcome
from leyden.recipes.prepare import read_build
from leyden.recipes.sections import TaskSection
from leyden.recipes.spike_facts import BatchFacts
from leyden.train.generators import random_state

TASK = {"task": "niah", "lengths": [600], "depths": 2, "every_steps": 2}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recipe(build: Path, **evaluate: Any) -> Any:
    data = on_build(build, steps=5, seq_len=64, batch_tokens=256, micro_batch_tokens=128)
    data["train"] |= {"checkpoint_steps": 2}
    text = build.parent / "first.jsonl"
    task = {**TASK, "text": [str(text)]}
    return parse_recipe(data | {"evaluate": {"every_steps": 2, "task": [task], **evaluate}}, "test")


@pytest.fixture
def watched(built: Path, tmp_path: Path) -> Path:
    run(recipe(built, length_bounds=[200], held_out_tokens=600), tmp_path / "watched")
    return tmp_path / "watched"


def test_the_training_is_that_without_it(built: Path, tmp_path: Path, watched: Path) -> None:
    run(recipe(built, every_steps=0, task=[]), tmp_path / "plain")
    for name in ("final/model.safetensors", "final/config.json"):
        assert (watched / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    plain = metrics(tmp_path / "plain")
    assert [{k: v for k, v in line.items() if "held_out" not in k} for line in metrics(watched)] == plain
    assert len(lines(tmp_path / "plain" / "eval.jsonl")) == 1


def test_what_was_measured_when(built: Path, watched: Path) -> None:
    found = lines(watched / "eval.jsonl")
    assert [(line.get("step"), line["task"]) for line in found] == [
        (step, task) for step in (2, 4, 5) for task in ("held_out", "niah")
    ] + [(None, "bits_per_byte")]
    logged = {line["step"]: line["held_out_loss"] for line in metrics(watched) if "held_out_loss" in line}
    for line in found:
        if line["task"] == "held_out":
            assert line["held_out_loss"] == logged[line["step"]]
            assert set(line["sources"]) == {"first", "second"}
            labels = {
                division: sum(p["labels"] for p in line[division].values()) for division in ("sources", "lengths")
            }
            assert labels["sources"] == labels["lengths"]
            for division in ("sources", "lengths"):
                nats = sum(part["loss"] * part["labels"] for part in line[division].values())
                assert nats / labels[division] == pytest.approx(line["held_out_loss"], rel=1e-5)
        elif line["task"] == "niah":
            assert line["n"] == 2
            assert 0 <= line["value"] <= 1
            assert not {"seconds", "reading"} & set(line)


def test_held_out_documents_of_a_build_have_their_group(built: Path) -> None:
    held_out = read_build(recipe(built)).held_out
    assert {document.source for document in held_out} == {"first", "second"}
    for document in held_out:
        assert ("apple" in document.text) == (document.source == "first")


def test_stopped_and_resumed_each_line_is_there_once(
    built: Path, tmp_path: Path, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(built, length_bounds=[200], held_out_tokens=600)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        after_step(patch, 3, interrupt)
        run(asked, tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run" / "eval.jsonl")] == [2, 2]
    # As a process leaves it that was killed after step 4, whose checkpoint was not written.
    with (tmp_path / "run" / "eval.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "one", "step": 4, "task": "held_out", "held_out_loss": 9}) + '\n{"stage": "on')
    run(asked, tmp_path / "run")
    assert (tmp_path / "run" / "eval.jsonl").read_bytes() == (watched / "eval.jsonl").read_bytes()
    # A longer run keeps what was measured on the way.
    longer = asked.model_copy(update={"stage": (asked.stage[0].model_copy(update={"steps": 6}),)})
    run(longer, tmp_path / "run")
    steps = [line.get("step") for line in lines(tmp_path / "run" / "eval.jsonl")]
    assert steps == [2, 2, 4, 4, 5, 5, 6, 6, None]
    assert lines(tmp_path / "run" / "earlier" / "step_00000005" / "eval.jsonl")[-1]["task"] == "bits_per_byte"


def test_generators_are_as_they_were(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leyden.recipes import watching

    before: list[Any] = []
    measured = watching.TaskWatcher._measured

    def draws(self: Any, *arguments: Any) -> Any:
        torch.rand(3)
        np.random.rand()
        return measured(self, *arguments)

    def spied(self: Any, state: Any, last: bool, **facts: Any) -> Any:
        before.append(random_state())
        found = called(self, state, last, **facts)
        assert random_state() == before[-1]
        return found

    called = watching.TaskWatcher.__call__
    monkeypatch.setattr(watching.TaskWatcher, "_measured", draws)
    monkeypatch.setattr(watching.TaskWatcher, "__call__", spied)
    run(recipe(built), tmp_path / "run")
    assert len(before) == 5


def test_at_the_end_of_the_last_stage_alone(built: Path, tmp_path: Path) -> None:
    whole = recipe(built, every_steps=0, task=[{**TASK, "every_steps": 0}, {**TASK, "every_steps": 100}])
    stage = whole.stage[0].model_dump(exclude_unset=True)
    stages = [{**stage, "name": name, "steps": 2} for name in ("first", "second")]
    run(parse_recipe({**whole.model_dump(exclude_unset=True), "stage": stages}, "test"), tmp_path / "run")
    found = lines(tmp_path / "run" / "eval.jsonl")
    assert [line["step"] for line in found if line["task"] == "niah"] == [2, 4, 4]


def test_a_needle_in_the_held_out_documents_at_the_end_alone(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"task": "niah", "lengths": [300, 600], "depths": 2, "held_out": True, "every_steps": 0}
    run(recipe(built, every_steps=0, task=[task]), tmp_path / "run")
    first, _ = found = lines(tmp_path / "run" / "eval.jsonl")
    assert [(line.get("step"), line["task"]) for line in found] == [(5, "niah"), (None, "bits_per_byte")]
    texts = [document.text for document in read_build(recipe(built)).held_out]
    tokenizer = read_build(recipe(built)).tokenizer
    assert first["settings"]["text"] == Haystack(tokenizer, texts=texts).source
    tell_outcome(tmp_path / "run")
    assert "in 300, 0.00 in 600 tokens)" in " ".join(capsys.readouterr().err.split())
    write_report(tmp_path / "run")
    assert "The share found, of 4." in (tmp_path / "run" / "report" / "index.html").read_text()


def test_every_option_of_the_tasks_is_a_key() -> None:
    assert TaskSection.model_fields.keys() - {"task", "every_steps", "held_out"} == {
        field.name for field in fields(Options)
    }


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"task": "naih", "every_steps": 2}, "did you mean 'niah'"),
        ({"task": "niah", "every_steps": 2, "held_out": True, "text": ["a.txt"]}, "give one of them"),
        ({"task": "niah"}, "every_steps.* is required"),
        ({"task": "niah", "every_steps": -1}, "every_steps.*greater than or equal to 0"),
        ({"task": "niah", "every_steps": 2, "lengths": ["1q"]}, "'1q' is no length in tokens"),
        ({"task": "niah", "every_steps": 2, "depth": 2}, "unknown key.*depth.*did you mean 'depths'"),
    ],
)
def test_tasks_that_cannot_be(task: dict[str, Any], says: str) -> None:
    stage = {"name": "one", "objective": "pretrain", "steps": 3}
    with pytest.raises(UserError, match=says):
        parse_recipe({"stage": [stage], "evaluate": {"task": [task]}}, "test")


def test_a_length_beyond_the_model_is_refused_before_the_first_step(built: Path, tmp_path: Path) -> None:
    data = on_build(built) | {"evaluate": {"task": [TASK | {"lengths": ["4k"]}]}}
    data["model"] = SMALL_MODEL | {"max_position_embeddings": 1024}
    with pytest.raises(UserError, match="a length of 4096 tokens was asked for, and the model has 1024 positions"):
        run(parse_recipe(data, "test"), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_documents_of_a_spike(built: Path) -> None:
    asked = recipe(built)
    prepared = read_build(asked)

    def make() -> Any:
        return make_batches(asked, 0, prepared)

    facts = BatchFacts(make)({"batch": 6, "fingerprint": ""}, 2)
    assert facts["batches"] == [6, 7]
    batches = make()
    trace = [*batches.trace(6), *batches.trace(7)]
    assert [document["id"] for document in facts["documents"]] == [segment.id for segment in trace]
    assert sum(document["length"] for document in facts["documents"]) in range(250, 257), "but for padding"
    assert facts["repeated_share"] == facts["usual_repeated_share"] == 0
    json.dumps(facts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "no stage has more than one; lower micro_batch_tokens"),
        ({"parallel": {"pp": 2}}, r"share theirs in a pipeline \(parallel.pp = 2\); set it to 0"),
    ],
)
def test_noise_that_cannot_be_measured(changes: dict[str, Any], says: str) -> None:
    stage = {"name": "one", "objective": "pretrain", "steps": 3}
    with pytest.raises(UserError, match=says):
        parse_recipe({"stage": [stage], "train": {"noise_scale_steps": 2}} | changes, "test")
