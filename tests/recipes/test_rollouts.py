"""A stage of reinforcement learning from the recipe to the metrics: drawn, trained, killed, resumed, forked."""

import json
import runpy
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from whole_runs import VOWELS, after_step, assert_same_run, changed, interrupt, metrics, rl_recipe

from leyden.align.rollouts import batches
from leyden.align.rollouts.batches import RolloutBatches
from leyden.checkpoint import save
from leyden.core.errors import Interrupted, UserError
from leyden.model import HybridLM
from leyden.recipes.loader import dry, parse_recipe
from leyden.recipes.runner import check, run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return rl_recipe(tmp_path_factory.mktemp("rl"), every_steps=2, group_size=4, prompts_per_step=2)


@pytest.fixture(scope="module")
def finished(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    run(parse_recipe(recipe, "test"), directory)
    return directory


def test_a_run_says_what_was_drawn_and_learned(finished: Path) -> None:
    lines = [line for line in metrics(finished) if line["stage"] == "rl"]
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6, 7]
    for number, line in enumerate(lines):
        assert ("reward" in line) == (number % 2 == 0), "what is said of completions is said once"
        assert line["completion_tokens"] > 0 and line["kl"] >= 0 and line["entropy"] > 0
        assert (line["off_policy"] == 0) == (number % 2 == 0)
    assert lines[0]["kl"] == 0 and lines[-1]["kl"] > 0
    assert all(0 < line["drift"] < 1e-3 for line in lines[::2])
    kept = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    assert [one["step"] for one in kept] == [2, 2, 4, 4, 6, 6]
    assert all(one["stage"] == "rl" and one["prompt"].startswith("Is ") for one in kept)
    assert (finished / "report" / "index.html").exists() and (finished / "reference" / "rl" / "config.json").exists()


def assert_same(directory: Path, undisturbed: Path) -> None:
    assert_same_run(directory, undisturbed)
    assert (directory / "rollouts.jsonl").read_bytes() == (undisturbed / "rollouts.jsonl").read_bytes()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_round", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_between_drawing_and_update(
    recipe: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_round: int
) -> None:
    following = RolloutBatches.__next__

    def die(own: RolloutBatches) -> Any:
        if own.state_dict()["batch"] == 2 * killed_round:
            raise Killed
        return following(own)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RolloutBatches, "__next__", die)
        run(parse_recipe(recipe, "test"), tmp_path / "run")
    drawn = [json.loads(line)["step"] for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert drawn[-1] == 2 + 2 * killed_round, "the completions were there"
    run(parse_recipe(recipe, "test"), tmp_path / "run")
    assert_same(tmp_path / "run", finished)


@pytest.mark.parametrize("step", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_stopped_between_two_updates_and_between_two_rounds(
    recipe: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        after_step(patch, step, interrupt)
        run(parse_recipe(recipe, "test"), tmp_path / "run")
    with monkeypatch.context() as patch:
        if step == 4:  # the completions are those of the checkpoint
            patch.setattr("leyden.align.rollouts.batches.draw_round", once_of(step))
        run(parse_recipe(recipe, "test"), tmp_path / "run")
    assert_same(tmp_path / "run", finished)


def once_of(step: int) -> Any:
    draw, seen = batches.draw_round, []

    def drawn(*given: Any, **how: Any) -> Any:
        seen.append(given)
        assert len(seen) == 1, "of the round behind the one that was stopped in"
        return draw(*given, **how)

    return drawn


@pytest.mark.slow
def test_forked_within_a_round(recipe: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    shutil.rmtree(source / "checkpoints" / "step_00000007")
    run(parse_recipe(recipe, "test"), tmp_path / "run", origin=f"{source}@6")
    final = "final/model.safetensors"
    assert (tmp_path / "run" / final).read_bytes() == (finished / final).read_bytes()
    shutil.rmtree(source / "reference")
    with pytest.raises(UserError, match="is not there, the model that the stage began with"):
        run(parse_recipe(recipe, "test"), tmp_path / "other", origin=f"{source}@6")


def test_a_run_of_reinforcement_learning_alone_from_a_model(
    recipe: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    place = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"What is {n} + 1?", "reference": str(n + 1)} for n in range(4)]
    place.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stage = changed(recipe, {"steps": 1})["stage"][1]
    stage["rl"] = {**stage["rl"], "environment": None, "prompts": [str(place)], "reward": "math"}
    alone = {"model": {"from": str(finished / "final")}, "train": recipe["train"], "stage": [stage]}
    parsed = parse_recipe(alone, "test")
    shown = check(parsed, tmp_path / "run")
    assert "2 prompts, 4 completions each" in shown and "minimax, reward math" in shown
    run(parsed, tmp_path / "run")
    (line,) = metrics(tmp_path / "run")
    assert line["reward"] == 0 and line["no_signal"] == 1
    assert parse_recipe(tomllib.loads(dry(parsed)), "again") == parsed


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"rl": None}, r"needs a table \[stage.rl\]"),
        ({"objective": "sft", "batch_tokens": 288}, "rl is for objective = 'rl', and objective is 'sft'"),
        ({"steps": None, "minutes": 1}, "give the stage steps"),
        ({"batch_tokens": 576}, "leave batch_tokens out"),
        ({"decay_tokens": 99}, "decay_tokens is for stages that read data"),
        ({"seq_len": 8, "micro_batch_tokens": 64}, "must have room for a prompt"),
    ],
)
def test_what_does_not_go_with_it_is_refused(recipe: dict[str, Any], stage: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe({**recipe, "stage": [recipe["stage"][0], {**recipe["stage"][1], **stage}]}, "test")


def test_it_needs_a_tokenizer_and_one_process(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trains no tokenizer"):
        parse_recipe({"model": recipe["model"], "stage": recipe["stage"][1:]}, "test")
    given = changed(recipe, {"micro_batch_tokens": 96 * 4})
    given["stage"][0] = {**given["stage"][0], "batch_tokens": 256, "micro_batch_tokens": 128}
    with pytest.raises(UserError, match="without a pipeline"):
        check(parse_recipe({**given, "parallel": {"pp": 2}}, "test"), tmp_path / "run")


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leyden_cli: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "alignment.md").read_text(encoding="utf-8")
    section = page.partition("### An example that learns in minutes")[2].partition("### Prompts and rewards")[0]
    program, recipe, commands = (
        section.partition(f"```{kind}\n")[2].partition("```")[0] for kind in ("python", "toml", "sh")
    )
    monkeypatch.chdir(tmp_path)
    Path("sorting.py").write_text(program, encoding="utf-8")
    Path("sorting.toml").write_text(recipe, encoding="utf-8")
    for command in commands.strip().splitlines():
        name, *words = command.split()
        if name == "python":
            runpy.run_path(words[0], run_name="__main__")
            continue
        short = ["--set", "stage.sft.steps=2", "--set", "stage.rl.steps=1"] if words[0] == "run" else []
        outcome = leyden_cli(*words, *short)
        assert outcome.code == 0, outcome.err
    assert [line["stage"] for line in metrics(Path("runs/sorting"))] == ["sft", "sft", "rl"]
    assert metrics(Path("runs/sorting"))[-1]["off_policy"] == 0


def test_a_teacher_is_what_the_divergence_is_from(recipe: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    kl = {}
    for name in ("reference/rl", "final"):  # the student itself, and a model that went on from there
        how = {"teacher": str(finished / name), "algorithm": {"preset": "distillation"}, "updates": 1}
        run(parse_recipe(changed(recipe, {"steps": 1}, **how), "test"), tmp_path / name)
        line = metrics(tmp_path / name)[-1]
        assert line["off_policy"] == 0 and line["reward"] > 0
        kl[name] = line["kl"]
        assert not (tmp_path / name / "reference").exists(), "a teacher is not copied"
    assert kl["reference/rl"] == 0 < kl["final"]
    with pytest.raises(UserError, match='learns from a teacher; give teacher = "MODEL"'):
        parse_recipe(changed(recipe, algorithm={"preset": "distillation"}), "test")
    with pytest.raises(UserError, match="give algorithm"):
        parse_recipe(changed(recipe, teacher="x", algorithm={"preset": "dapo"}), "test")


def test_a_run_goes_on_with_the_teacher_that_it_began_with_alone(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, shape = tmp_path / "teacher", parse_recipe(recipe, "test").model
    save(HybridLM(shape, seed=5), None, teacher)
    how = {"teacher": str(teacher), "algorithm": {"preset": "distillation"}, "updates": 1}
    given = parse_recipe(changed(recipe, {"steps": 2}, **how), "test")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        after_step(patch, 2, interrupt)
        run(given, tmp_path / "run")
    teacher.rename(tmp_path / "kept")
    save(HybridLM(shape, seed=6), None, teacher)
    with pytest.raises(UserError, match="with another seed or teacher"):
        run(given, tmp_path / "run")
    shutil.rmtree(teacher)
    (tmp_path / "kept").rename(teacher)
    run(given, tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_teacher_with_other_tokens_or_fewer_positions_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    shape = parse_recipe(recipe, "test").model
    for number, (other, message) in enumerate(
        [({"vocab_size": 300}, "has other tokens than the model"), ({"max_position_embeddings": 64}, "64 positions")]
    ):
        save(HybridLM(shape.model_copy(update=other)), None, tmp_path / f"{number}")
        how = {"teacher": str(tmp_path / f"{number}"), "algorithm": {"preset": "distillation"}}
        with pytest.raises(UserError, match=message):
            check(parse_recipe(changed(recipe, **how), "test"), tmp_path / "run")


HELD_OUT = """
    def held_out(self):
        return [{"prompt": f"Is {number} not so?"} for number in range(3)]
"""


def test_epochs_are_steps_and_the_reward_on_held_out_prompts_is_measured(
    recipe: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_text(VOWELS + HELD_OUT, encoding="utf-8")
    given = changed(recipe, {"steps": None, "epochs": 0.5}, environment=f"{own}:Vowels", held_out_prompts=2)
    run(parse_recipe(given, "test"), tmp_path / "run")
    settled = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["stage"][1]
    assert (settled["epochs"], settled["steps"]) == (0.5, 6), "half of 9 prompts are 3 rounds of 2 updates"
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["task"] == "held_out_reward"]
    assert [(line["stage"], line["step"]) for line in found] == [("sft", 1), ("rl", 2), ("rl", 4), ("rl", 6), ("rl", 7)]
    assert all(line["of"] == "rl" and line["n"] == 2 and 0 <= line["value"] <= 1 for line in found)
    final = "final/model.safetensors"
    assert (tmp_path / "run" / final).read_bytes() == (finished / final).read_bytes(), "measuring changes nothing"
    assert run(parse_recipe(given, "test"), tmp_path / "run").exists(), "the settled steps are taken over"


def test_rollouts_that_wait_are_gone_on_with_after_a_stop(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a round and between two, with rollouts set aside in both: the run never stopped, bit for bit."""
    given = parse_recipe(changed(recipe, round_tokens=3, max_rounds=2, algorithm={"preset": "dapo"}), "test")
    run(given, tmp_path / "whole")
    for step in (4, 5):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            after_step(patch, step, interrupt)
            run(given, tmp_path / "run")
    run(given, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")
    lines = [line for line in metrics(tmp_path / "run") if "waiting" in line]
    assert all(line["waiting"] > 0 for line in lines) and lines[-1]["continued"] > 0 and lines[-1]["age_max"] == 2
    assert all(line["off_policy"] == 0 for line in lines) and lines[-1]["earlier"] > 0
    assert {line["out_of_rounds"] for line in lines} == {1.0} and {line["cut"] for line in lines} == {0.0}
