"""Every stage is checked before the first step of any, and by --dry-run; what could not begin leaves nothing behind."""

import os
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import after_step, interrupt, on_build, steps_of_a_second

from leyden.core.config import dump_toml
from leyden.core.lock import folder_lock
from leyden.recipes.folder import sweep

BOTH = {"point": [{"weights": {"first": 1.0, "second": 1.0}}]}
SECOND: list[tuple[dict[str, Any], str]] = [
    ({"mixture": {"point": [{"weights": {"first": 1.0}}]}}, "stage 'two': the mixture has no weight for second"),
    ({"mixture": {"point": [{"weights": {"first": 1.0, "scond": 1.0}}]}}, "'scond', which is no source; did you mean"),
    (
        {"mixture": {**BOTH, "max_epochs": {"second": 0.001}}},
        "stage 'two': source 'second' runs dry after .* more than its max_epochs",
    ),
    (
        {"mixture": {"length_bounds": [60000], "point": [{**BOTH["point"][0], "lengths": [0, 1]}]}},
        r"stage 'two': mixture\.point\.0\.lengths asks 1 .* more than 60,000 tokens, and no source",
    ),
    ({"seq_len": 48}, "stage 'two'.*multiple of seq_len"),
    ({"seq_len": 2_000_000, "batch_tokens": 2_000_000, "micro_batch_tokens": 2_000_000}, "max_position_embeddings"),
]


@pytest.fixture
def refused(leyden_cli: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """What ``leyden run`` and its dry run say of a recipe that neither takes, of which nothing stays."""

    def run(given: dict[str, Any]) -> str:
        path = tmp_path / "given.toml"
        path.write_text(dump_toml(given))
        said = []
        for options in ((), ("--dry-run",)):
            outcome = leyden_cli("run", path, "--dir", tmp_path / "runs" / "x", *options)
            assert (outcome.code, outcome.out) == (2, ""), outcome.err
            assert not (tmp_path / "runs").exists()
            said.append(outcome.err.splitlines()[-1])
        assert said[0] == said[1]
        return said[0]

    return run


@pytest.mark.parametrize(("stage", "says"), SECOND)
def test_a_later_stage_that_cannot_be(
    built: Path, refused: Callable[..., str], stage: dict[str, Any], says: str
) -> None:
    given = on_build(built)
    given["stage"] = [*given["stage"], {**given["stage"][0], "name": "two", **stage}]
    assert re.search(says, refused(given))


def test_a_build_that_is_not_there_yet(built: Path, tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    """A dry run of a recipe that says its vocabulary notes it, and a run is refused."""
    given = on_build(built)
    given |= {"model": {**given["model"], "vocab_size": 300}, "data": {"build": str(tmp_path / "nowhere")}}
    (tmp_path / "given.toml").write_text(dump_toml(given))
    command = ("run", tmp_path / "given.toml", "--dir", tmp_path / "run")
    outcome = leyden_cli(*command)
    assert outcome.code == 2 and "nowhere" in outcome.err
    outcome = leyden_cli(*command, "--dry-run")
    assert outcome.code == 0 and "nowhere is not there yet" in outcome.out
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there_or_does_not_fit(built: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    given = on_build(built)
    assert "nowhere" in refused(given | {"data": {"build": str(tmp_path / "nowhere")}})
    small = given | {"model": {**given["model"], "vocab_size": 299}}
    assert "(299) is smaller than the vocabulary" in refused(small)
    text = {key: value for key, value in given.items() if key != "data"}
    assert "no/such/text does not exist" in refused(text | {"data": {"text": ["no/such/text"]}})
    assert "no/tokenizer" in refused(text | {"tokenizer": {"path": "no/tokenizer"}})


def test_too_many_epochs_of_minutes_are_seen_once_they_are_measured(
    built: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """99 steps of a second each; nothing was trained, so nothing stays."""
    mixture = {**BOTH, "max_epochs": {"second": 0.1}}
    given = on_build(built, steps=None, minutes=100 / 57, mixture=mixture)
    (tmp_path / "timed.toml").write_text(dump_toml(given))
    assert leyden_cli("run", tmp_path / "timed.toml", "--dry-run").code == 0
    steps_of_a_second(monkeypatch)
    outcome = leyden_cli("run", tmp_path / "timed.toml", "--dir", tmp_path / "run")
    assert outcome.code == 2
    assert "99 steps fit" in outcome.err
    assert "stage 'one': source 'second' runs dry after" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_warm_up_of_all_steps_is_said(built: Path, tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    (tmp_path / "long.toml").write_text(dump_toml(on_build(built, warmup_steps=30)))
    outcome = leyden_cli("run", tmp_path / "long.toml", "--dry-run")
    assert outcome.code == 0
    assert "its warm-up (30 steps) takes all of its 3 steps: the learning rate ends at 0.0001" in outcome.err
    (tmp_path / "short.toml").write_text(dump_toml(on_build(built, warmup_steps=2)))
    assert "warm-up" not in leyden_cli("run", tmp_path / "short.toml", "--dry-run").err


def test_a_dry_run_on_a_run_says_what_the_run_would(
    finished: Path, recipe_file: Path, leyden_cli: Callable[..., Any]
) -> None:
    command = ("run", recipe_file, "--dir", finished, "--set", "stage.long.lr=1.0")
    plain, dry = leyden_cli(*command), leyden_cli(*command, "--dry-run")
    assert (plain.code, dry.code) == (2, 2)
    assert plain.err == dry.err
    longer = leyden_cli("run", recipe_file, "--dir", finished, "--set", "stage.long.tokens=9000", "--dry-run")
    assert longer.code == 0, longer.err
    assert tomllib.loads(longer.out)["stage"][1]["tokens"] == 9000


def test_a_folder_belongs_to_one_process(finished: Path, recipe_file: Path, leyden_cli: Callable[..., Any]) -> None:
    with folder_lock(finished, "trains a run"):
        outcome = leyden_cli("run", recipe_file, "--dir", finished)
    assert outcome.code == 2
    assert f"process {os.getpid()} on " in outcome.err
    assert leyden_cli("run", recipe_file, "--dir", finished).code == 0
    assert not (finished / ".lock").exists()


def test_a_run_on_a_build_is_gone_on_with_from_elsewhere(
    built: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with relative paths; then the run, and then the build too, are moved."""
    (tmp_path / "r.toml").write_text(dump_toml(on_build(Path("build"), steps=4) | {"train": {"checkpoint_steps": 2}}))
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        after_step(patch, 1, interrupt)
        assert leyden_cli("run", "r.toml", "--dir", "run").code == 130
    (tmp_path / "run").rename(tmp_path / "moved run")
    monkeypatch.chdir("/")
    moved = ("run", tmp_path / "moved run" / "recipe.toml", "--dir", tmp_path / "moved run")
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        outcome = leyden_cli(*moved)
        assert outcome.code == 130, outcome.err
    built.rename(tmp_path / "moved build")
    assert "build" in leyden_cli(*moved).err
    outcome = leyden_cli(*moved, "--set", f"data.build={tmp_path / 'moved build'}")
    assert outcome.code == 0, outcome.err
    assert "going on from step 3" in outcome.err


def test_what_a_kill_left_is_swept(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = sorted(run.rglob("*"))
    (run / "final").rename(run / ".final.old")  # between the two steps of a swap
    for name in ("plans/0123/tmpabc/plan", ".final.part"):
        (run / name).mkdir(parents=True)
    for name in (".step_00000004.gone", ".step_00000012.part"):
        (run / "checkpoints" / name).mkdir()
    (run / ".eval.jsonl.part").write_text("")
    sweep(run)
    shutil.rmtree(run / "plans")
    assert sorted(run.rglob("*")) == before
