"""A run whose recipe changes on its way: stages to come, longer stages, forks; and what is left as it was."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import after_step, assert_same_run, interrupt, metrics, steps_of_a_second

from leyden.checkpoint import read_config
from leyden.recipes import load_recipe
from leyden.recipes.fork import Origin
from leyden.tokenizer import Tokenizer

Run = Callable[..., Any]


@pytest.fixture
def leyden_run(leyden_cli: Run, recipe_file: Path) -> Run:
    """Runs the small recipe with settings; gives what was said."""

    def run(directory: Path, *settings: str, recipe: Path = recipe_file, options: tuple[Any, ...] = ()) -> Any:
        changes = [word for setting in settings for word in ("--set", setting)]
        return leyden_cli("run", recipe, "--dir", directory, *changes, *options)

    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_a_later_stage_is_corrected_and_the_run_is_the_one_that_was_right_at_once(
    finished: Path, tmp_path: Path, leyden_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_step(patch, 5, interrupt)
        assert leyden_run(directory, "stage.long.lr=1.0", "stage.long.tokens=5000").code == 130
    outcome = leyden_run(directory)
    assert outcome.code == 0, outcome.err
    assert_same_run(directory, finished)


def test_how_a_finished_run_is_served_may_change(copied: Path, leyden_run: Run) -> None:
    """Nothing is done again; the recipe says it where it is not the default."""
    before = (copied / "recipe.toml").read_text()
    assert "[serve]" not in before
    assert f"{copied} is finished." in leyden_run(copied, "serve.max_sequences=3").err
    assert load_recipe(str(copied / "recipe.toml")).serve.max_sequences == 3
    leyden_run(copied)
    assert (copied / "recipe.toml").read_text() == before


def test_a_finished_run_gets_another_stage(finished: Path, recipe_file: Path, tmp_path: Path, leyden_run: Run) -> None:
    """And is the run of both stages; what it had come to is kept."""
    one_stage = tmp_path / "one.toml"
    head, _, rest = recipe_file.read_text().partition('[[stage]]\nname = "long"')
    one_stage.write_text(head + rest[rest.index("[evaluate]") :])
    directory = tmp_path / "run"
    assert leyden_run(directory, recipe=one_stage).code == 0
    model = (directory / "final" / "model.safetensors").read_bytes()
    outcome = leyden_run(directory)
    assert outcome.code == 0, outcome.err
    assert "going on from step 6" in outcome.err
    assert_same_run(directory, finished)
    kept = directory / "earlier" / "step_00000006"
    assert {path.name for path in kept.iterdir()} == {"final", "eval.jsonl", "samples.jsonl", "report"}
    assert (kept / "final" / "model.safetensors").read_bytes() == model


def test_the_last_stage_is_lengthened(copied: Path, tmp_path: Path, leyden_run: Run) -> None:
    """Its schedule is that of the new length from there on."""
    outcome = leyden_run(copied, "stage.long.tokens=2000")
    assert outcome.code == 0, outcome.err
    lines = metrics(copied)
    assert [line["step"] for line in lines] == list(range(1, 15))
    schedule = load_recipe(str(copied / "recipe.toml")).stage[1]
    assert [line["lr"] for line in lines[10:]] == [schedule.lr_at(step, 8) for step in range(4, 8)]
    assert (copied / "earlier" / "step_00000010" / "final").is_dir()
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert f"{copied} is finished." in leyden_run(copied, "stage.long.tokens=2000").err
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


@pytest.mark.slow
def test_other_prompts_are_completed_by_the_model_that_is_there(copied: Path, leyden_run: Run) -> None:
    model = (copied / "final" / "model.safetensors").stat().st_mtime_ns
    assert leyden_run(copied, 'evaluate.prompts=["now"]').code == 0
    (line,) = (copied / "samples.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "now"
    assert (copied / "final" / "model.safetensors").stat().st_mtime_ns == model


def test_a_fork_with_nothing_changed_is_the_run_that_went_on(
    finished: Path, tmp_path: Path, leyden_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the middle of the first stage, killed before its first checkpoint of its own, and moved meanwhile."""
    source, directory = tmp_path / "source", tmp_path / "a fork"
    with monkeypatch.context() as patch:
        after_step(patch, 5, interrupt)
        assert leyden_run(source, options=()).code == 130
    fork = ("--from", f"{source}@4")
    with monkeypatch.context() as patch:
        after_step(patch, 5, lambda: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            leyden_run(directory, recipe=source / "recipe.toml", options=fork)
    shutil.rmtree(source)
    moved = directory.rename(tmp_path / "moved")
    outcome = leyden_run(moved, recipe=moved / "recipe.toml")
    assert outcome.code == 0, outcome.err
    assert "going on from step 4" in outcome.err
    assert_same_run(moved, finished)
    assert (moved / "held_out.jsonl").read_bytes() == (finished / "held_out.jsonl").read_bytes()


def test_a_fork_takes_other_rates_and_documents(finished: Path, text: Path, tmp_path: Path, leyden_run: Run) -> None:
    """The stage goes on at its step; other documents are read by the tokenizer that the weights know."""
    fork = ("--from", str(finished / "checkpoints" / "step_00000008"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("01.txt", "02.txt", "03.txt"):
        shutil.copy(text / name, other / name)
    changes = ("stage.long.lr=1e-3", f'data.text=["{other}"]', "data.held_out_fraction=0.5", "evaluate.prompts=[]")
    outcome = leyden_run(tmp_path / "fork", *changes, options=fork)
    assert outcome.code == 0, outcome.err
    assert "forked from" in outcome.err
    assert "stage 'long', step 2 of it; its data is another, or packed otherwise, and begins anew" in outcome.err
    ours, theirs = metrics(tmp_path / "fork"), metrics(finished)
    assert ours[:8] == theirs[:8]
    assert [line["step"] for line in ours] == list(range(1, 11))
    assert ours[8]["lr"] == theirs[8]["lr"] / 2
    assert ours[8]["loss"] != theirs[8]["loss"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "fork" / "tokenizer" / name).read_bytes() == (finished / "tokenizer" / name).read_bytes()
    again = leyden_run(tmp_path / "fork", *changes, options=fork)
    assert "is finished." in again.err
    assert "did not begin at" in leyden_run(finished, options=("--from", str(tmp_path / "fork"))).err


@pytest.mark.slow
def test_stages_of_other_names_begin_anew(finished: Path, tmp_path: Path, leyden_run: Run) -> None:
    """With the RoPE base that the weights are used to."""
    settings = ("stage.0.name=more", "stage.0.steps=1", "stage.1.name=last", "stage.1.tokens=256")
    recipe = tmp_path / "more.toml"
    recipe.write_text((finished / "recipe.toml").read_text().replace("rope_theta = 80000.0\n", ""))
    outcome = leyden_run(tmp_path / "fork", *settings, recipe=recipe, options=("--from", f"{finished}"))
    assert outcome.code == 0, outcome.err
    assert "stage 'more', which begins" in outcome.err
    assert [line["stage"] for line in metrics(tmp_path / "fork")] == ["short"] * 6 + ["long"] * 4 + ["more", "last"]
    assert read_config(tmp_path / "fork" / "final").rope_theta == 80_000.0


@pytest.mark.parametrize(
    ("origin", "settings", "says"),
    [
        ("{}@5", [], "has no checkpoint of step 5; it has those of steps 8, 10"),
        ("{}/final", [], "holds no run; give the directory of one"),
        ("{}/gone@4", [], "does not exist; give the directory of a run, as in DIR@STEP"),
        ("{}@8", ["model.hidden_size=64"], "belongs to another model"),
        ("{}@10", ["stage.long.tokens=256"], "has taken 4 steps at .* and is to have 1"),
        ("{}@10", ["tokenizer.path={}/other", "model.vocab_size=500"], "another tokenizer"),
    ],
)
def test_a_fork_that_cannot_be(
    finished: Path, tmp_path: Path, leyden_run: Run, origin: str, settings: list[str], says: str
) -> None:
    Tokenizer.train(["to be or not to be"] * 2, vocab_size=264).save(tmp_path / "other")
    options = ("--from", origin.format(finished))
    given = [setting.format(tmp_path) for setting in settings]
    outcome = leyden_run(tmp_path / "runs" / "fork", *given, options=options)
    assert outcome.code == 2, outcome.err
    assert re.search(says, outcome.err), outcome.err
    if "tokenizer" not in says:  # which is seen once the documents are read
        assert not (tmp_path / "runs").exists()


def test_where_a_fork_begins_is_read_as_it_is_written(finished: Path, tmp_path: Path) -> None:
    at = tmp_path / "name@7"
    at.mkdir()
    assert Origin.parse(f"{finished}@10") == Origin(finished, 10)
    assert Origin.parse(f"{finished}") == Origin(finished, None)
    assert Origin.parse(f"{at}@3") == Origin(at, 3)
    assert Origin.parse(f"{finished}/checkpoints/step_00000008") == Origin(finished, 8)


@pytest.mark.slow
def test_other_minutes_are_measured_and_never_fewer_steps_than_were_taken(
    finished: Path, tmp_path: Path, leyden_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that seem to take a second each: of the last stage, which has taken 4."""
    for minutes, steps in ((0.1, 5), (0.02, 4)):
        directory = Path(shutil.copytree(finished, tmp_path / f"{steps}"))
        length = ("stage.long.minutes=" + str(minutes), "evaluate.prompts=[]")
        recipe = tmp_path / "minutes.toml"
        recipe.write_text((finished / "recipe.toml").read_text().replace("tokens = 1000\n", "minutes = 1.0\n"))
        with monkeypatch.context() as patch:
            steps_of_a_second(patch)
            outcome = leyden_run(directory, *length, recipe=recipe)
        assert outcome.code == 0, outcome.err
        assert len(metrics(directory)) == 6 + steps
        assert load_recipe(str(directory / "recipe.toml")).stage[1].steps == steps
        assert "is finished" in leyden_run(directory, *length, recipe=recipe).err
