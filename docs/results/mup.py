"""The best learning rate at three widths, with muP and without.

A small hybrid is trained at every rate of a grid, at widths of 64, 128 and 256; with ``[train.mup] base_width = 64``
and without. At 64 both are one. What is done is kept in ``mup.json`` and not done again. See mup.md beside this file.

    python docs/results/mup.py --seeds 0
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from claim import write_json

from leyden.core.device import keep_freed_memory
from leyden.core.log import say
from leyden.recipes import load_recipe
from leyden.recipes.batches import make_batches
from leyden.recipes.prepare import Prepared, prepare, read_prepared
from leyden.train import Pretrain, build_state
from leyden.train.step import train_step

HERE = Path(__file__).parent
RECIPE, RESULTS = HERE / "mup.toml", HERE / "mup.json"
BASE, WIDTHS = 64, (64, 128, 256)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
LAST_STEPS = 20
"""Whose mean loss is compared; no document is read twice, so it is a loss on unseen text."""


def settings_of(width: int, rate: float, seed: int, *, with_mup: bool) -> list[str]:
    """Of the recipe, at a width."""
    times = width // BASE
    model = {"hidden_size": width, "num_attention_heads": 2 * times, "num_key_value_heads": 2 * times}
    model["intermediate_size"] = 128 * times
    settings = [f"model.{name}={value}" for name, value in model.items()]
    settings += [f"stage.train.lr={rate}", f"train.seed={seed}"]
    return [*settings, f"train.mup.base_width={BASE}"] if with_mup else settings


def train(settings: list[str], prepared: Prepared) -> float:
    """The mean loss of the last steps."""
    recipe = load_recipe(str(RECIPE), settings)
    (stage,) = recipe.stage
    steps = stage.total_steps
    assert steps is not None, "mup.toml says them"
    state = build_state(recipe.model, recipe.train, row_tokens=stage.seq_len)
    batches, losses = make_batches(recipe, 0, prepared), []
    for step in range(steps):
        lr = stage.lr_at(step, steps)
        result = train_step(state, [batches.batch(step)], Pretrain(), lr=lr, clip_norm=recipe.train.clip_norm)
        losses.append(result.loss)
    return statistics.mean(losses[-LAST_STEPS:])


def best(losses: dict[str, float]) -> str:
    """The rate with the lowest loss."""
    return min(losses, key=lambda rate: losses[rate])


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="The best rate at three widths; see mup.md beside this file.")
    parser.add_argument("--seeds", default="0", help="as in 0,1,2")
    parser.add_argument("--dir", type=Path, default=Path("runs/mup"), help="where tokens are kept")
    given = parser.parse_args()
    keep_freed_memory()
    recipe = load_recipe(str(RECIPE))
    given.dir.mkdir(parents=True, exist_ok=True)
    prepare(recipe, given.dir)
    prepared = read_prepared(recipe, given.dir)
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for seed in given.seeds.split(","):
        for width in WIDTHS:
            for kind in ("without", "with") if width > BASE else ("without",):
                losses = results.setdefault(seed, {}).setdefault(f"{width} {kind}", {})
                for rate in RATES:
                    if f"{rate:g}" not in losses:
                        settings = settings_of(width, rate, int(seed), with_mup=kind == "with")
                        losses[f"{rate:g}"] = train(settings, prepared)
                        write_json(RESULTS, results)
                say(f"seed {seed}, width {width} {kind} muP: best at {best(losses)}; {losses}")


if __name__ == "__main__":
    main()
