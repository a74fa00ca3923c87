"""The parts of published recipes in docs/recipes.md: what they come to, and a small one that runs to its average."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.core.config import dump_toml
from leyden.model import RopeScaling
from leyden.recipes import Recipe
from leyden.recipes.loader import parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
Cli = Callable[..., Any]


def fragment(heading: str) -> dict[str, Any]:
    return tomllib.loads(PAGE.partition(f"### {heading}\n")[2].partition("```toml\n")[2].partition("```")[0])


def parsed(heading: str) -> Recipe:
    return parse_recipe(fragment(heading), heading)


def test_annealing_falls_linearly_to_nothing() -> None:
    before, anneal = parsed("The end of pre-training, as in Llama 3").stage
    assert anneal.total_steps == 1000
    rates = [anneal.lr_at(step, 1000) for step in (0, 249, 499, 999)]
    assert rates == pytest.approx([0.999 * 3e-4, 0.75 * 3e-4, 0.5 * 3e-4, 0.0], abs=1e-18)
    assert before.lr_at(19_999, 20_000) == anneal.lr  # it goes on where the stage before ended
    assert before.mixture is not None and anneal.mixture is not None
    assert anneal.mixture.point[0].weights["best"] > before.mixture.point[0].weights["best"]


def test_the_context_grows_by_the_base_and_then_by_yarn() -> None:
    recipe = parsed("A longer context, as in Qwen2.5")
    assert [(stage.seq_len, stage.rope_theta) for stage in recipe.stage] == [
        (4096, None),
        (32_768, 1e6),
        (131_072, None),
    ]
    assert recipe.stage[2].rope_scaling == RopeScaling(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768
    )
    assert recipe.model.rope_theta == 1e4


@pytest.mark.slow
def test_a_small_annealing_runs_to_its_average(recipe_file: Path, tmp_path: Path, leyden_cli: Cli) -> None:
    """The page's stages and [train], a few steps of each, on the small text."""
    small, said = tomllib.loads(recipe_file.read_text()), fragment("The end of pre-training, as in Llama 3")
    files = sorted(map(str, Path(small["data"]["text"][0]).iterdir()))
    said["data"]["text"] = {"web": files[10:], "best": files[:10]}
    sizes = {"seq_len": 64, "batch_tokens": 128, "micro_batch_tokens": 128, "steps": 4}
    stages = [stage | sizes | ({"warmup_steps": 2} if "warmup_steps" in stage else {}) for stage in said["stage"]]
    train = said["train"] | {"dtype": "float32", "checkpoint_steps": 2, "keep_checkpoints": 2}
    recipe = {"model": small["model"], "tokenizer": small["tokenizer"], "data": said["data"], "train": train}
    (tmp_path / "mine.toml").write_text(dump_toml(recipe | {"stage": stages}))
    outcome = leyden_cli("run", tmp_path / "mine.toml", "--dir", tmp_path / "mine")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["stage"] == "anneal"] == pytest.approx(
        [3e-4 * (3 - step) / 4 for step in range(4)], abs=1e-18
    )
    outcome = leyden_cli("soup", tmp_path / "mine", tmp_path / "averaged", "--last", "2")
    assert outcome.code == 0, outcome.err
    average, last = (leyden.load(tmp_path / name)[0].state_dict() for name in ("averaged", "mine/final"))
    distance = max(float((average[name] - last[name]).abs().max()) for name in last)
    assert 0 < distance < 0.05 and all(bool(torch.isfinite(weight).all()) for weight in average.values())
