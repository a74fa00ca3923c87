"""Grids become recipes: products, budgets, keys; and one small grid is carried out, killed and gone on with."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_runs import SMALL_MODEL

from leyden.core.config import dump_toml
from leyden.core.errors import UserError
from leyden.model import count_model
from leyden.recipes.loader import load_recipe
from leyden.recipes.studies import resolve
from leyden.study.grid import Grid, Point, expand

pytestmark = pytest.mark.slow

BATCH, LENGTH = 128, 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    (folder / "text").mkdir()
    rng = random.Random(0)
    for number in range(12):
        words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(200)]
        (folder / "text" / f"{number}.txt").write_text(" ".join(words))
    stage = {"name": "one", "objective": "pretrain", "steps": 12, "seq_len": LENGTH, "batch_tokens": BATCH, "lr": 1e-3}
    recipe = {
        "model": {**SMALL_MODEL, "num_local_experts": 0},
        "tokenizer": {"vocab_size": 300},
        "data": {"text": [str(folder / "text")]},
        "train": {"dtype": "float32", "checkpoint_steps": 2},
        "stage": [stage],
    }
    path = folder / "base.toml"
    path.write_text(dump_toml(recipe))
    return path


def points_of(base: Path, *axes: dict[str, Any], **grid: Any) -> list[Point]:
    return resolve(Grid.parse({"recipe": str(base), "axis": axes, **grid}, "grid"), "grid")


LR = {"name": "lr", "key": "stage.0.lr", "values": [1e-3, 2e-3]}
WIDTH = {"name": "width", "points": {"narrow": {"model": {"hidden_size": 32}}, "wide": {"model": {"hidden_size": 64}}}}


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
)
def test_points_are_the_product_of_axes_and_seeds(counts: list[int], seeds: list[int]) -> None:
    axes = [{"name": f"a{i}", "key": f"model.k{i}", "values": list(range(n))} for i, n in enumerate(counts)]
    found = expand(Grid.parse({"recipe": "r", "axis": axes, "seeds": seeds, "settings": {"train": {"x": 1}}}, "g"))
    expected = [
        ({**{f"model.k{i}": v for i, v in enumerate(values)}, "train.x": 1}, seed)
        for values in itertools.product(*map(range, counts))
        for seed in seeds
    ]
    assert [(one.settings, one.seed) for one in found] == expected
    assert len({one.name for one in found}) == len(found)


def test_a_point_is_its_recipe(base: Path) -> None:
    points = points_of(base, WIDTH, LR, seeds=[3, 4])
    assert len({point.key for point in points}) == len(points) == 8
    assert points[0].name == "width narrow, lr 0.001, seed 3"
    assert [point.key for point in points] == [point.key for point in points_of(base, WIDTH, LR, seeds=[3, 4])]
    assert points[0].key != points_of(base, WIDTH, LR, seeds=[3, 4], threads=2)[0].key  # sums have another order
    path = base.parent / "again.toml"
    path.write_text(points[-1].recipe)
    recipe = load_recipe(str(path))
    assert (recipe.model.hidden_size, recipe.stage[0].lr, recipe.train.seed) == (64, 2e-3, 4)
    counted = count_model(recipe.model)
    assert (points[-1].tokens, points[-1].parameters) == (12 * BATCH, counted.parameters)
    assert points[-1].flops == 12 * BATCH * counted.training_flops_per_token(LENGTH)


def test_a_budget_becomes_steps(base: Path) -> None:
    budgets = {"name": "flops", "key": "flops", "values": [5e9, 1e10]}
    for point in points_of(base, WIDTH, budgets):
        budget = float(point.coordinates["flops"])
        assert point.flops is not None and point.tokens is not None
        assert budget - point.flops / (point.tokens / BATCH) < point.flops <= budget


@pytest.mark.parametrize(
    ("axis", "grid", "message"),
    [
        ({**LR, "key": "stage.0.lrr"}, {}, r"grid: lr 0.001, seed 0: .*unknown key 'stage.0.lrr'; did you mean 'lr'"),
        ({**LR, "key": "modle.hidden_size"}, {}, r"unknown key 'modle'; did you mean 'model'"),
        ({**LR, "values": []}, {}, "an axis has either key and values, or points"),
        ({**LR, "points": {"x": {}}}, {}, "an axis has either key and values, or points"),
        ({**LR, "name": "seed"}, {}, "none of them 'seed'"),
        (LR, {"seeds": [1, 1]}, "a seed is named twice"),
        (LR, {"max_flops": 1e6}, r"2 points take .* FLOPs of training and max_flops allows 1e\+06\. Leave out"),
        ({**LR, "key": "flops", "values": [1e6]}, {}, r"1e\+06 FLOPs are .* steps of this model.*at least 10: give"),
        ({**LR, "key": "flops", "values": ["much"]}, {}, "flops is a number of training operations above 0"),
        (LR, {"recipe": "none.toml"}, "none.toml is neither a file nor a shipped recipe"),
    ],
)
def test_bad_grids_are_refused_in_words(base: Path, axis: dict[str, Any], grid: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(Grid.parse({"recipe": str(base), "axis": [axis], **grid}, "grid"), "grid")


def write_grid(base: Path, path: Path) -> Path:
    path.write_text(dump_toml({"recipe": str(base), "axis": [WIDTH, LR]}))
    return path


def test_the_command_says_what_it_would_run_and_what_a_study_needs(
    base: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    grid = write_grid(base, tmp_path / "grid.toml")
    shown = leyden_cli("study", "ablation", grid, "--dir", tmp_path / "study", "--dry-run")
    assert (shown.code, len(shown.out.splitlines())) == (0, 2 + 4), shown.err
    assert not (tmp_path / "study").exists()
    refused = leyden_cli("study", "scaling", grid, "--dry-run")
    assert (refused.code, "needs an axis named 'size'" in refused.err) == (2, True)
    refused = leyden_cli("study", "ablation", grid, "--dry-run", "--executor", "lokal")
    assert (refused.code, "did you mean 'local'" in refused.err) == (2, True)


@pytest.mark.slow  # two grids of four runs, each of which starts a process
def test_a_grid_whose_launcher_is_killed_ends_as_the_grid_never_killed(base: Path, tmp_path: Path) -> None:
    grid = write_grid(base, tmp_path / "grid.toml")

    def launch(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "leyden", "study", "ablation", str(grid), "--dir", str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert launch("whole").wait() == 0
    for seconds in (4.0, 9.0):
        killed = launch("killed")
        time.sleep(seconds)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    assert launch("killed").wait() == 0
    figures = [json.loads((tmp_path / name / "results.json").read_text())["figures"] for name in ("whole", "killed")]
    assert figures[0] == figures[1]
    for point in (tmp_path / "whole" / "points").iterdir():
        other = tmp_path / "killed" / "points" / point.name
        name = Path("run") / "final" / "model.safetensors"
        assert (point / name).read_bytes() == (other / name).read_bytes()
