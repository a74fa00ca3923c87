"""Runs at a glance: listed, summed up, set side by side, while they go on and afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, step_line

from leyden.core.lock import folder_lock
from leyden.evaluate.runs import find_runs, recipe_differences, summarise

Cli = Callable[..., Any]
RECIPE = """
[train]
seed = {seed}
[[stage]]
name = "a<b>"
steps = 20
[[stage]]
name = "b"
tokens = 100
batch_tokens = 30
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, name in enumerate(("first", "group/second")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "recipe.toml").write_text(RECIPE.format(seed=number))
        lines = [step_line(step) for step in range(1, 11)]
        lines[4] |= {"held_out_loss": 4.75, "held_out_bits_per_byte": 2.5}
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "corpus" / "tokenizer").mkdir(parents=True)  # a data build, which has a recipe, too
    (tmp_path / "runs" / "corpus" / "recipe.toml").touch()
    (tmp_path / "runs" / ".hidden").mkdir()
    return tmp_path / "runs"


def test_a_run_is_summed_up(runs: Path) -> None:
    assert [run.relative_to(runs).as_posix() for run in find_runs(runs)] == ["first", "group/second"]
    assert find_runs(runs / "first") == [runs / "first"]
    run = summarise(runs / "first")
    assert (run.state, run.step, run.total_steps, run.tokens) == ("stopped", 10, 24, 40960)
    assert run.loss == pytest.approx(4.0)
    assert (run.held_out_loss, run.bits_per_byte) == (4.75, 2.5)
    with folder_lock(runs / "first", "trains a run"):
        assert summarise(runs / "first").state == "running"
    for name in ("final", "report"):
        (runs / "first" / name).mkdir()
    (runs / "first" / "report" / "index.html").touch()
    (runs / "first" / "eval.jsonl").write_text(json.dumps({"task": "bits_per_byte", "value": 1.5}) + "\n")
    run = summarise(runs / "first")
    assert (run.state, run.bits_per_byte) == ("finished", 1.5)


def test_a_run_without_anything_yet(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[[stage")
    (tmp_path / "data.json").touch()
    run = summarise(tmp_path)
    assert (run.state, run.step, run.total_steps, run.loss) == ("stopped", 0, None, None)


def test_recipes_differ_by_key() -> None:
    one = {"a": 1, "stage": [{"lr": 0.1, "name": "x"}], "same": [1, 2]}
    other = {"stage": [{"lr": 0.2, "name": "x"}, {"lr": 0.3}], "same": [1, 2], "b": {"c": "d"}}
    assert recipe_differences([one, other]) == [
        ("a", ["1", ""]),
        ("stage.0.lr", ["0.1", "0.2"]),
        ("stage.1.lr", ["", "0.3"]),
        ("b.c", ["", '"d"']),
    ]


def test_they_are_listed(leyden_cli: Cli, runs: Path) -> None:
    out = leyden_cli("ls", runs).out
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "step"]
    assert str(runs / "group" / "second") in lines[2]
    assert "10/24" in lines[1]
    records = [json.loads(line) for line in leyden_cli("ls", runs, "--json").out.splitlines()]
    assert [record["step"] for record in records] == [10, 10]
    assert leyden_cli("ls", runs / "notes").out == f"{runs / 'notes'} holds no runs.\n"
    assert leyden_cli("ls", runs / "nothing").code == 2


def test_the_report_of_a_run_that_goes_on_is_not_taken_for_that_of_a_finished_one(leyden_cli: Cli, runs: Path) -> None:
    outcome = leyden_cli("report", runs / "first", runs / "group" / "second")
    assert outcome.code == 0, outcome.err
    path = runs / "first" / "report" / "progress.html"
    assert outcome.out.splitlines()[0] == str(path)
    assert not (runs / "first" / "report" / "index.html").exists()
    page = Page(path.read_text(encoding="utf-8"))
    assert "held out" in page.text
    assert "2.500" in page.text
    refused = leyden_cli("report", runs / "notes")
    assert refused.code == 2
    assert "is not the folder of a run" in refused.err


def test_they_are_set_side_by_side(leyden_cli: Cli, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = leyden_cli("compare", runs / "first", runs / "group" / "second", "--out", page)
    assert outcome.code == 0, outcome.err
    assert any(line.split() == ["train.seed", "0", "1"] for line in outcome.out.splitlines())
    shown = Page(page.read_text(encoding="utf-8"))
    assert len(shown.ids) == len(set(shown.ids))
    for text in ("first", "second", "train.seed", "Loss on held-out documents", "10 of 24"):
        assert text in shown.text, text
    assert leyden_cli("compare", runs / "first", "--out", page).code == 0  # a page of its own is drawn again
    assert "The recipes do not differ" in page.read_text(encoding="utf-8")
    (tmp_path / "letter.html").write_text("dear")
    refused = leyden_cli("compare", runs / "first", "--out", tmp_path / "letter.html")
    assert refused.code == 2
    assert (tmp_path / "letter.html").read_text() == "dear"
