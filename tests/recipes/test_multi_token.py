"""Multi-token prediction as a recipe says it: weights by step, what is refused, a run that goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_runs import after_step, assert_same_run, interrupt, metrics

import leyden
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.recipes.multi_token import mtp_weight_of
from leyden.recipes.schema import Recipe

MARKS = "stage.0.mtp_weight=[[0, 0.3], [1024, 0.1]]"
MODULES = {"num_nextn_predict_layers": 1}


def recipe(model: dict[str, Any], **stage: Any) -> Recipe:
    common = {"name": "a", "objective": "pretrain", "steps": 9, "seq_len": 8, "batch_tokens": 16}
    return Recipe.parse({"model": ModelConfig(**model).model_dump(), "stage": [common | stage]}, "recipe")


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (0.2, [0.2] * 4),
        (0, [0.0] * 4),
        ([[0, 0.3], [32, 0.1]], [0.3, 0.3, 0.1, 0.1]),
        ([[0, 0.0], [1, 0.5]], [0.0] + [0.5] * 3),
    ],
)
def test_weights_by_step(given: Any, weights: list[float]) -> None:
    made = recipe(MODULES, mtp_weight=given)
    found = mtp_weight_of(made, made.stage[0], trains=True)
    assert [found(step) for step in range(4)] == weights


def test_a_recipe_survives_being_written() -> None:
    made = recipe(MODULES, mtp_weight=[[0, 0.3], [1e9, 0.1]])
    assert Recipe.parse(json.loads(json.dumps(made.model_dump(mode="json"))), "again") == made


@pytest.mark.parametrize(
    "given", [-1, float("nan"), [[1, 0.3]], [[0, 0.3], [0, 0.1]], [[0, 0.3], [5.5, 0.1]], [0.3], True, "a"]
)
def test_weights_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match="mtp_weight"):
        recipe(MODULES, mtp_weight=given)


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="the model has none"):
        recipe({}, mtp_weight=0.1)
    chats = {"objective": "sft", "normalise": "chats", "mtp_weight": 0.1}
    with pytest.raises(UserError, match="takes another"):
        recipe(MODULES, **chats)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_bits(
    recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second weight begins behind the interruption; the final model has its modules, and is opened again."""
    changes = [x for said in ("model.num_nextn_predict_layers=1", MARKS) for x in ("--set", said)]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    outcome = leyden_cli("run", recipe_file, "--dir", whole, *changes)
    assert outcome.code == 0, outcome.err
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        assert leyden_cli("run", recipe_file, "--dir", stopped, *changes).code == 130
    outcome = leyden_cli("run", stopped / "recipe.toml", "--dir", stopped, "--resume", "auto")
    assert outcome.code == 0, outcome.err
    assert_same_run(stopped, whole)
    assert all(record["mtp_loss_1"] > 0 for record in metrics(whole))
    model, _ = leyden.load(whole / "final")
    assert len(model.mtp) == 1
