"""PPO from the recipe to the metrics: a critic beside the policy, in its checkpoints, killed, resumed, forked, kept."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import after_step, assert_same_run, changed, interrupt, metrics, rl_recipe

import leyden
from leyden.checkpoint import save
from leyden.core.errors import Interrupted, UserError
from leyden.model import HybridLM
from leyden.recipes.loader import parse_recipe
from leyden.recipes.runner import check, run

CRITIC = "critic/rl/model.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    rl = {
        "group_size": 1,
        "prompts_per_step": 4,
        "algorithm": {"preset": "ppo"},
        "critic": {"lr": 2e-3, "alone_steps": 2},
    }
    return rl_recipe(tmp_path_factory.mktemp("ppo"), every_steps=0, **rl)


@pytest.fixture(scope="module")
def finished(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    run(parse_recipe(recipe, "test"), directory)
    return directory


def test_a_run_says_what_the_critic_learned(finished: Path) -> None:
    lines = [line for line in metrics(finished) if line["stage"] == "rl"]
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6, 7]
    for number, line in enumerate(lines):
        assert ("explained_variance" in line) == ("reward" in line) == (number % 2 == 0)
        assert line["value_loss"] > 0 and line["critic_grad_norm"] > 0
        # The policy waits for two steps, and has changed at the second update of later rounds.
        assert (line["off_policy"] == 0) == (number % 2 == 0 or number < 2)
    assert lines[0]["value_mean"] == 0 and lines[2]["value_mean"] != 0, "it begins without an opinion"
    assert lines[0]["explained_variance"] == 0
    assert [line["lr"] for line in lines[:2]] == [0, 0] and lines[2]["lr"] > 0
    assert lines[0]["critic_lr"] == 2e-3 and lines[-1]["critic_lr"] == pytest.approx(2e-4), "the schedule of the stage"
    assert lines[0]["kl"] == 0 and lines[-1]["kl"] > 0
    assert lines[0]["value_clipped"] == lines[2]["value_clipped"] == 0
    kept = [json.loads(line) for line in (finished / "rollouts.jsonl").read_text().splitlines()]
    assert len({one["advantage"] for one in kept}) > 1


@pytest.mark.slow
def test_the_policy_stays_as_it_is_while_it_waits(recipe: dict[str, Any], tmp_path: Path) -> None:
    run(parse_recipe(changed(recipe, {"steps": 3}), "test"), tmp_path / "run")
    began, waited, learned = (
        leyden.load(tmp_path / "run" / name)[0].state_dict()
        for name in ("reference/rl", "checkpoints/step_00000002", "final")
    )
    assert all(torch.equal(value, began[name]) for name, value in waited.items())
    assert any(not torch.equal(value, began[name]) for name, value in learned.items())


def test_the_critic_is_kept_and_another_begins_from_it(recipe: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    kept = leyden.load(finished / "critic" / "rl")[0]
    assert kept.config.score_head and not leyden.load(finished / "final")[0].config.score_head
    assert kept.score is not None and kept.score.weight.any()
    one = changed(recipe, {"steps": 1}, critic={"model": str(finished / "critic" / "rl")})
    run(parse_recipe(one, "test"), tmp_path / "run")
    line = metrics(tmp_path / "run")[-1]
    assert line["value_mean"] != 0 and line["value_clipped"] == 0
    # A model of another shape and without a head begins with values of 0.
    smaller = parse_recipe({**recipe, "model": {**recipe["model"], "num_hidden_layers": 1}}, "test").model
    save(HybridLM(smaller, seed=5), None, tmp_path / "small")
    run(parse_recipe(changed(recipe, {"steps": 1}, critic={"model": str(tmp_path / "small")}), "test"), tmp_path / "s")
    assert metrics(tmp_path / "s")[-1]["value_mean"] == 0
    assert leyden.load(tmp_path / "s" / "critic" / "rl")[0].config.num_hidden_layers == 1


def assert_same(directory: Path, undisturbed: Path) -> None:
    assert_same_run(directory, undisturbed)
    for name in (CRITIC, "rollouts.jsonl"):
        assert (directory / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.parametrize("step", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_stopped_between_two_updates_and_between_two_rounds(
    recipe: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    given = parse_recipe(recipe, "test")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        after_step(patch, step, interrupt)
        run(given, tmp_path / "run")
    run(given, tmp_path / "run")
    assert_same(tmp_path / "run", finished)


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_between_the_steps_of_the_policy_and_of_the_critic(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from leyden.align.rollouts.critic import Critic

    given = parse_recipe({**recipe, "train": {**recipe["train"], "dtype": dtype, "async_checkpoint": True}}, "test")
    run(given, tmp_path / "whole")
    learn = Critic.learn

    def die(own: Critic, rows: Any, stage_step: int) -> Any:
        if stage_step == 3:
            raise Killed
        return learn(own, rows, stage_step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Critic, "learn", die)
        run(given, tmp_path / "run")
    run(given, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_forked_within_the_stage(recipe: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    shutil.rmtree(source / "checkpoints" / "step_00000007")
    run(parse_recipe(recipe, "test"), tmp_path / "run", origin=f"{source}@6")
    for name in ("final/model.safetensors", CRITIC):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    # A stage of another name begins anew, and so does its critic; one without a critic leaves it where it lies.
    for name, how in {
        "again": {"critic": {}},
        "plain": {"algorithm": {"preset": "dapo"}, "critic": {}, "group_size": 2},
    }.items():
        other = changed(recipe, {"name": name, "steps": 1}, **how)
        run(parse_recipe({**other, "stage": other["stage"][1:]}, "test"), tmp_path / name, origin=f"{source}@6")
        line = metrics(tmp_path / name)[-1]
        assert line["stage"] == name and line.get("value_mean", 0) == 0 and ("value_loss" in line) == (name == "again")


def test_a_stage_that_was_begun_without_a_critic_is_not_gone_on_with_by_one(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = changed(recipe, algorithm={"preset": "dapo"}, critic={}, group_size=2)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        after_step(patch, 3, interrupt)
        run(parse_recipe(plain, "test"), tmp_path / "run")
    with pytest.raises(UserError, match=r"step_00000003 has no critic"):
        run(parse_recipe(changed(recipe, group_size=2), "test"), tmp_path / "other", origin=f"{tmp_path / 'run'}@3")


@pytest.mark.parametrize(
    ("stage", "rl", "message"),
    [
        ({"steps": 2}, {}, r"rl.critic.alone_steps \(2\) leaves none of the 2 steps"),
        ({}, {"algorithm": {"preset": "dapo"}}, "critic is of an algorithm with a critic"),
        ({}, {"algorithm": {"preset": "dapo"}, "critic": {}}, "leaves a completion nothing to be compared with"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    recipe: dict[str, Any], stage: dict[str, Any], rl: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe(changed(recipe, stage, **rl), "test")


def test_models_that_cannot_judge_are_refused(
    recipe: dict[str, Any], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = parse_recipe(recipe, "test").model
    save(HybridLM(shape.model_copy(update={"vocab_size": 300})), None, tmp_path / "other")
    save(HybridLM(shape.model_copy(update={"max_position_embeddings": 64})), None, tmp_path / "short")
    for name, message in {
        "other": r"rl.critic.model .*other has other tokens than the model",
        "short": "64 positions",
        "none": "none",
    }.items():
        with pytest.raises(UserError, match=message):
            check(parse_recipe(changed(recipe, critic={"model": str(tmp_path / name)}), "test"), tmp_path / "run")
    assert "ppo, reward" in (shown := check(parse_recipe(recipe, "test"), tmp_path / "run"))
    assert "critic from the policy" in shown
    assert re.search(r"stage 'rl': a critic of [\d.]+K weights, which begins as the policy", capsys.readouterr().err)
    stage = changed(recipe)["stage"][1:]
    lora = {"model": {"from": str(finished / "final")}, "train": {"lora": {"rank": 2}}, "stage": stage}
    with pytest.raises(UserError, match="its critic is a whole model that is trained"):
        parse_recipe(lora, "test")
