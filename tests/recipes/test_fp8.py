"""``train.fp8`` in a recipe: what is refused in words, and a run of it from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import metrics

import leyden
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.recipes.schema import Recipe


def recipe(train: dict[str, Any], parallel: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    common = {"name": "a", "objective": "pretrain", "steps": 9, "seq_len": 8, "batch_tokens": 16} | stage
    document = {"model": ModelConfig().model_dump(), "train": train, "parallel": parallel or {}, "stage": [common]}
    document["tokenizer"] = {"path": "somewhere"}
    return Recipe.parse(document, "recipe")


def test_a_recipe_survives_being_written() -> None:
    made = recipe({"fp8": "blocks"}, {"pp": 2})
    assert Recipe.parse(json.loads(json.dumps(made.model_dump(mode="json"))), "again") == made


@pytest.mark.parametrize(
    ("train", "parallel", "said"),
    [
        ({"fp8": "rows"}, {}, "train.fp8"),
        ({"fp8": "blocks"}, {"tp": 2}, "parallel.tp = 2 would cut them"),
        ({"fp8": "blocks"}, {"etp": 2}, "parallel.etp = 2 would cut them"),
        ({"fp8": "blocks"}, {"compile": True}, "parallel.compile = true"),
    ],
)
def test_what_cannot_be_is_refused(train: dict[str, Any], parallel: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe(train, parallel)


def test_completions_are_not_learned_from_in_tiles() -> None:
    rl = {"environment": "vowels.py:Vowels", "max_tokens": 4}
    with pytest.raises(UserError, match="no ratio of probabilities is 1"):
        recipe({"fp8": "blocks"}, objective="rl", batch_tokens=8, seq_len=8, micro_batch_tokens=8, rl=rl)


def test_a_run(recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any]) -> None:
    """Its model is a plain one, and another than that of a run without tiles."""
    made = []
    for name, changes in (("plain", []), ("tiles", ["--set", "train.fp8=blocks"])):
        outcome = leyden_cli("run", recipe_file, "--dir", tmp_path / name, *changes)
        assert outcome.code == 0, outcome.err
        made.append(leyden.load(tmp_path / name / "final")[0].lm_head.weight)
    assert not torch.equal(*made)
    losses = [metrics(tmp_path / name)[0]["loss"] for name in ("plain", "tiles")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    assert 'fp8 = "blocks"' in (tmp_path / "tiles" / "recipe.toml").read_text()
