"""A batch size that changes inside a stage: every step has its size, also in a run that is stopped and gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import after_step, assert_same_run, interrupt, metrics

from leyden.recipes.stages import _steps_in
from leyden.train import BatchSchedule
from leyden.train.critical_batch import CriticalBatch

CHANGING = "stage.short.batch_tokens=[[0, 256], [700, 512], [1500, 128]]"


@pytest.fixture(scope="module")
def undisturbed(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory, leyden_cli: Callable[..., Any]) -> Path:
    directory = tmp_path_factory.mktemp("changing") / "run"
    outcome = leyden_cli("run", recipe_file, "--dir", directory, "--set", CHANGING)
    assert outcome.code == 0, outcome.err
    return directory


def test_every_step_has_its_size(undisturbed: Path) -> None:
    tokens = [record["tokens"] for record in metrics(undisturbed)]
    assert [after - before for before, after in zip([0, *tokens], tokens, strict=False)] == [
        *(256, 256, 256, 512, 512, 128),
        *(256, 256, 256, 256),
    ]


@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_stopped_at_a_change(
    undisturbed: Path,
    recipe_file: Path,
    tmp_path: Path,
    leyden_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    command = ("run", recipe_file, "--dir", tmp_path / "run", "--set", CHANGING)
    with monkeypatch.context() as patch:
        after_step(patch, step, interrupt)
        assert leyden_cli(*command).code == 130
    outcome = leyden_cli(*command)
    assert outcome.code == 0, outcome.err
    assert_same_run(tmp_path / "run", undisturbed)


GROWING = (
    *("--set", "stage.short.batch='critical'"),
    *("--set", "stage.short.batch_tokens=256"),
    *("--set", "stage.short.max_batch_tokens=512"),
    *("--set", "train.noise_scale_steps=2"),
)


def test_a_batch_that_grows_with_the_critical_one(
    recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may double at every measurement here, and does so once, as far as it may."""
    monkeypatch.setattr(CriticalBatch, "see", lambda *given: True)
    command = ("run", recipe_file, "--dir", tmp_path / "run", *GROWING)
    outcome = leyden_cli(*command, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "doubles by the critical batch" in outcome.out and "to 512 at most" in outcome.out
    outcome = leyden_cli(*command)
    assert outcome.code == 0, outcome.err
    assert "step 2: too little is known" in outcome.err and "the batch doubles from the next step on" in outcome.err
    tokens = [record["tokens"] for record in metrics(tmp_path / "run")]
    assert [after - before for before, after in zip([0, *tokens], tokens, strict=False)] == [
        *(256, 256, 512, 512),
        *(256, 256, 256, 256),
    ]
    assert "finished" in leyden_cli(*command).err
    refused = leyden_cli(*command, "--set", "train.noise_scale_steps=3")
    assert refused.code and "train.noise_scale_steps is 2 there and 3 now" in refused.err


def test_minutes_count_larger_steps_as_longer() -> None:
    one = BatchSchedule.of(256, 256)
    assert [_steps_in(planned, 2.0, 0.0, one) for planned in (0.5, 2.0, 5.9, 6.0)] == [1, 1, 2, 3]
    assert _steps_in(30.0, 2.0, 1.0, one) == 10
    doubling = BatchSchedule.of(((0, 256), (1024, 512)), 256)
    assert [_steps_in(planned, 1.0, 0.0, doubling) for planned in (3.9, 5.9, 6.0, 8.0)] == [3, 4, 5, 6]
