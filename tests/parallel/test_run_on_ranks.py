"""``leyden run`` under torchrun: the run of one process; killed, stopped and resumed, the run never hurt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_runs
from safetensors.torch import load_file

from leyden.recipes import load_recipe

PLAN = ("--set", "parallel.cp=2", "--set", "parallel.ep=2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rank_runs.write_recipe(tmp_path_factory.mktemp("ranks") / "recipe")


@pytest.fixture(scope="module")
def alone(recipe: Path, leyden_cli: Callable[..., Any]) -> Path:
    """The run of one process."""
    directory = recipe.parent / "alone"
    outcome = leyden_cli("run", recipe, "--dir", directory)
    assert outcome.code == 0, outcome.err
    return directory


@pytest.fixture(scope="module")
def unhurt(recipe: Path) -> tuple[Path, str]:
    """The run of two ranks that nothing disturbed, and what it said."""
    directory = recipe.parent / "unhurt"
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN)
    assert ended.code == 0, ended.said
    return directory, ended.said


def assert_close(found: Path, expected: Path, rtol: float) -> None:
    ours, theirs = rank_runs.metrics(found), rank_runs.metrics(expected)
    for name in ("step", "stage", "tokens", "lr", "skipped"):
        assert [record[name] for record in ours] == [record[name] for record in theirs], name
    for name in ("loss", "aux_loss", "grad_norm", "dropped"):
        assert [r[name] for r in ours] == pytest.approx([r[name] for r in theirs], rel=rtol, abs=rtol), name


def assert_same_bits(found: Path, expected: Path) -> None:
    assert rank_runs.metrics(found) == rank_runs.metrics(expected)
    for name in ("final/model.safetensors", "final/config.json", "eval.jsonl", "samples.jsonl", "recipe.toml"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.slow
def test_two_ranks_are_one_process(unhurt: tuple[Path, str], alone: Path) -> None:
    directory, said = unhurt
    assert [record["step"] for record in rank_runs.metrics(directory)] == list(range(1, rank_runs.TOTAL_STEPS + 1))
    assert_close(directory, alone, rtol=2e-6)
    ours, theirs = (load_file(path / "final" / "model.safetensors") for path in (directory, alone))
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert worst < 1e-5
    assert {path.name for path in directory.iterdir()} == {path.name for path in alone.iterdir()}
    for line in ("documents: 30", "bits per byte on unseen documents", "model:  "):
        assert said.count(line) == 1, said
    assert load_recipe(str(directory / "recipe.toml")).parallel.ep == 2


@pytest.mark.slow
def test_why_a_plan_is_refused_is_the_last_thing_that_torchrun_prints(recipe: Path, tmp_path: Path) -> None:
    """A step of the second stage has one micro-batch of 256 tokens, and a pipeline of two ranks takes two."""
    ended = rank_runs.torchrun("run", recipe, "--dir", tmp_path / "run", "--set", "parallel.pp=2")
    assert ended.code == 1
    assert 2 in rank_runs.exit_codes(ended)
    *_, last = (line.strip() for line in ended.said.splitlines() if line.strip("= "))
    assert last == "The smallest change of the batch with which this plan works: micro_batch_tokens = 128 (now 256)."
    root_cause = ended.said.rpartition("Root Cause")[2]
    assert "error: stage 'long': [parallel] cannot train this model on 2 ranks" in root_cause
    assert ended.said.count("error: stage 'long'") == 2, "when it was found, and at the end"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_from_a_model_is_that_of_one_process(
    recipe: Path, alone: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    """The first rank finds the model and notes it; each reads its own part, of another layout than ours."""
    given = rank_runs.from_model(recipe, alone / "final", tmp_path / "more.toml")
    one = leyden_cli("run", given, "--dir", tmp_path / "one")
    assert one.code == 0, one.err
    ended = rank_runs.torchrun("run", given, "--dir", tmp_path / "two", *PLAN)
    assert ended.code == 0, ended.said
    assert ended.said.count("the run begins from") == 1
    assert_close(tmp_path / "two", tmp_path / "one", rtol=2e-6)
    assert rank_runs.metrics(tmp_path / "one")[0]["loss"] < 0.98 * rank_runs.metrics(alone)[0]["loss"]


@pytest.mark.slow
def test_a_run_on_token_files_is_that_of_one_process(
    recipe: Path, alone: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    """The first rank looks for the documents and holds some out; both map the same files, and go on after a stop."""
    given = rank_runs.on_token_files(recipe, alone / "tokenizer", tmp_path / "tokens.toml")
    one = leyden_cli("run", given, "--dir", tmp_path / "one")
    assert one.code == 0, one.err
    stopped = rank_runs.torchrun("run", given, "--dir", tmp_path / "two", *PLAN, fault=("terminate", 1, 3))
    assert stopped.code == 1
    ended = rank_runs.torchrun("run", given, "--dir", tmp_path / "two", *PLAN)
    assert ended.code == 0, ended.said
    assert "going on from step 3" in ended.said
    assert_close(tmp_path / "two", tmp_path / "one", rtol=2e-6)


@pytest.mark.slow
def test_killed_in_the_midst_of_a_step_and_started_again(
    recipe: Path, unhurt: tuple[Path, str], tmp_path: Path
) -> None:
    """The second rank, in the second stage; torchrun starts both anew, from the checkpoint of step 6."""
    directory = tmp_path / "run"
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN, restarts=1, fault=("kill", 1, 8))
    assert ended.code == 0, ended.said
    assert "going on from step 6" in ended.said
    assert_same_bits(directory, unhurt[0])


@pytest.mark.slow
def test_terminated_and_resumed_on_one_process(
    recipe: Path, unhurt: tuple[Path, str], alone: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    """One rank is asked to stop, all do, at the end of the step. Another plan goes on with the same batches."""
    directory = tmp_path / "run"
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN, fault=("terminate", 1, 3))
    assert ended.code == 1
    assert rank_runs.exit_codes(ended)[0] == 130, ended.said
    assert ended.said.count("Stopped after step 3; everything is saved. To go on: torchrun --nproc-per-node 2") == 1
    assert "runner.py" not in ended.said, "no traceback but torchrun's own"
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step_00000003"]
    outcome = leyden_cli("run", recipe, "--dir", directory)
    assert outcome.code == 0, outcome.err
    assert "going on from step 3" in outcome.err
    assert rank_runs.metrics(directory)[:3] == rank_runs.metrics(unhurt[0])[:3]
    assert_close(directory, alone, rtol=2e-6)


@pytest.mark.slow
def test_terminated_and_resumed_on_as_many(recipe: Path, unhurt: tuple[Path, str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    rank_runs.torchrun("run", recipe, "--dir", directory, *PLAN, fault=("terminate", 0, 5))
    ended = rank_runs.torchrun("run", directory / "recipe.toml", "--dir", directory, "--resume", "auto")
    assert ended.code == 0, ended.said
    assert "going on from step 5" in ended.said
    assert_same_bits(directory, unhurt[0])


@pytest.mark.slow
def test_a_pipeline_of_two_ranks_is_one_process(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """A step of the second stage has one micro-batch and cannot fill a pipeline; smaller ones can."""
    directory, changes = tmp_path / "run", ("--set", "parallel.pp=2", "--set", "stage.long.micro_batch_tokens=128")
    ended = rank_runs.torchrun("run", recipe, "--dir", directory, *changes)
    assert ended.code == 0, ended.said
    ours, theirs = rank_runs.metrics(directory)[:6], rank_runs.metrics(alone)[:6]
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=2e-6)


@pytest.mark.slow
def test_minutes_become_as_many_steps_on_all_ranks(recipe: Path, tmp_path: Path) -> None:
    """The first rank's clock decides; with everything on that a plan may ask for beside its sizes."""
    directory, timed = tmp_path / "run", tmp_path / "timed.toml"
    timed.write_text(recipe.read_text().replace("steps = 6", "minutes = 0.02").replace('"float32"', '"auto"'))
    changes = (
        "parallel.offload_optimizer=true",
        "parallel.activation_checkpointing=full",
        "train.async_checkpoint=true",
    )
    settings = [word for change in changes for word in ("--set", change)]
    ended = rank_runs.torchrun("run", timed, "--dir", directory, *PLAN, *settings)
    assert ended.code == 0, ended.said
    settled = load_recipe(str(directory / "recipe.toml"))
    steps = sum(stage.steps or 0 for stage in settled.stage)
    assert [record["step"] for record in rank_runs.metrics(directory)] == list(range(1, steps + 1))
    assert settled.train.dtype in ("bfloat16", "float32")
    assert ended.said.count("steps fit 0.02 minutes") == 1
