"""A run killed, stopped or out of disk goes on by the same command, and ends as the run that nothing disturbed."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import after_step, assert_same_run, interrupt, metrics, steps_of_a_second

from leyden.checkpoint import pieces
from leyden.core.errors import Interrupted
from leyden.recipes import load_recipe, run, stages
from leyden.recipes.prepare import prepare
from leyden.train import run as train_run

KILLED = """
import os
from leyden.cli import main
from leyden.train.metrics import MetricsLog

append = MetricsLog.append

def append_and_die(log, record):
    append(log, record)
    if record["step"] == 7:
        os.kill(os.getpid(), 9)

MetricsLog.append = append_and_die
main()
"""


def test_killed_in_the_second_stage(
    finished: Path, recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    command = ["run", str(recipe_file), "--dir", str(tmp_path / "run")]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **threads},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [record["step"] for record in metrics(tmp_path / "run")] == list(range(1, 8))
    assert not (tmp_path / "run" / "final").exists()
    outcome = leyden_cli(*command)
    assert outcome.code == 0, outcome.err
    assert "going on from step 6" in outcome.err
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_ctrl_c_saves_and_says_how_to_go_on(
    finished: Path,
    recipe_file: Path,
    tmp_path: Path,
    leyden_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_step(patch, step, interrupt)
        outcome = leyden_cli("run", recipe_file, "--dir", directory)
    assert outcome.code == 130
    assert f"Stopped after step {step}; everything is saved." in outcome.err
    go_on = f"leyden run {directory / 'recipe.toml'} --dir {directory} --resume auto"
    assert f"To go on: {go_on}" in outcome.err
    assert "Traceback" not in outcome.err
    outcome = leyden_cli(*go_on.split()[1:])
    assert outcome.code == 0, outcome.err
    assert f"going on from step {step}" in outcome.err
    assert_same_run(directory, finished)


def test_ctrl_c_outside_of_training_keeps_what_is_finished(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(recipe_file))
    for place in ("leyden.recipes.prepare.run_build", "leyden.recipes.runner.write_samples"):

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            with pytest.raises(Interrupted, match=r"what was finished is kept\. To go on: leyden run "):
                run(recipe, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("leyden.recipes.runner.train", None)  # it was done before the second
        run(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


def test_a_full_disk_loses_nothing(
    finished: Path, recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pieces = pieces.save_pieces

    def write_too_much(directory: Path, *rest: Any) -> Any:
        written = save_pieces(directory, *rest)
        if "step_00000006" in directory.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    command = ("run", recipe_file, "--dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "save_pieces", write_too_much)
        outcome = leyden_cli(*command)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "step_00000006 could not be written: the disk is full" in outcome.err
    assert "run the same command again" in outcome.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]
    assert leyden_cli(*command).code == 0
    assert_same_run(tmp_path / "run", finished)


def test_minutes_become_steps_once(
    recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that seem to take a second each; a run that goes on measures nothing."""
    timed = tmp_path / "timed.toml"
    timed.write_text(recipe_file.read_text().replace("steps = 6", "minutes = 0.1").replace("bfloat16", "auto"))
    command = ("run", timed, "--dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        steps_of_a_second(patch)
        after_step(patch, 2, interrupt)
        outcome = leyden_cli(*command)
    assert outcome.code == 130, outcome.err
    assert "stage short: 1.00 s a step of 256 tokens; 5 steps fit 0.1 minutes" in outcome.err
    settled = load_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert (settled.stage[0].minutes, settled.stage[0].steps) == (0.1, 5)
    assert settled.train.dtype in ("bfloat16", "float32")
    monkeypatch.setattr(stages, "time_steps", None)
    monkeypatch.setattr(train_run, "compute_dtype", None)
    outcome = leyden_cli(*command)
    assert outcome.code == 0, outcome.err
    assert [record["step"] for record in metrics(tmp_path / "run")] == list(range(1, 10))
    assert load_recipe(str(tmp_path / "run" / "recipe.toml")) == settled
    outcome = leyden_cli(*command, "--set", "stage.short.minutes=0.01", "--dry-run")
    assert "stage.0.minutes" in outcome.err, "the stage has ended"


def test_text_that_was_read_is_not_read_again(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped before it had its tokens resumes the build that makes them, and leaves nothing of it."""
    recipe = load_recipe(str(recipe_file))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("leyden.data.builds.run.make_tokens", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, tmp_path)
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("leyden.data.builds.run._read_shard", stop)
    prepare(recipe, tmp_path)
    for name in ("held_out.jsonl", "tokenizer/tokenizer.json", "data/metadata.json", "data.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name
    assert not (tmp_path / "build").exists()
