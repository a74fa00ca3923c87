"""A run that begins from an upcycled model begins at the loss of the model that it was made of."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import metrics

import leyden
from leyden.checkpoint import read_config
from leyden.core.config import dump_toml
from leyden.model import ModelConfig
from leyden.model.initialization import initialize

STAGE = {"name": "more", "objective": "pretrain", "steps": 1, "seq_len": 64, "batch_tokens": 128, "lr": 1e-3}
Cli = Callable[..., Any]


def first_loss(model: Path, recipe_file: Path, directory: Path, leyden_cli: Cli) -> float:
    data = tomllib.loads(recipe_file.read_text())["data"]
    recipe = {"model": {"from": str(model)}, "data": data, "train": {"dtype": "float32"}, "stage": [STAGE]}
    path = directory.with_suffix(".toml")
    path.write_text(dump_toml(recipe))
    outcome = leyden_cli("run", path, "--dir", directory)
    assert outcome.code == 0, outcome.err
    return metrics(directory)[0]["loss"]


@pytest.mark.parametrize(("num_experts", "experts", "parts"), [(0, 8, 4), (4, 8, 2)], ids=["dense", "finer experts"])
def test_the_first_loss_is_that_of_the_model(
    finished: Path, recipe_file: Path, tmp_path: Path, leyden_cli: Cli, num_experts: int, experts: int, parts: int
) -> None:
    shape = read_config(finished).model_dump() | {"num_local_experts": num_experts}
    model = leyden.HybridLM(ModelConfig.parse(shape, "a model"))
    initialize(model, model.config, seed=3)
    before, after = tmp_path / "before", tmp_path / "after"
    leyden.save(model, leyden.load(finished)[1], before)
    outcome = leyden_cli("upcycle", before, after, "--experts", experts, "--parts", parts)
    assert outcome.code == 0, outcome.err
    losses = [first_loss(one, recipe_file, tmp_path / f"{one.name}-run", leyden_cli) for one in (before, after)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
