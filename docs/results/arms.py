"""Small runs side by side: variants of one recipe with a few seeds, on the same tokens; for the pages beside this.

A variant is a name and what it changes in the recipe. Each finished run is kept in a file of results and not done
again.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claim import write_json, write_tokens
from scipy import stats

from leyden.core.log import say
from leyden.data import read_documents, standard_library_sources
from leyden.recipes import load_recipe, run
from leyden.tokenizer import Tokenizer

VOCABULARY = 1_024
WINDOW_STEPS = 20
"""Of the metrics, how many steps one kept number is the mean of."""


def prepare(folder: Path) -> None:
    """A tokenizer, and the tokens of the standard library's documents in one file."""
    if (folder / "text.ds.index").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    texts = [document.text for document in read_documents(standard_library_sources(), [])]
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[index] for index in order]
    tokenizer = Tokenizer.train(texts[::10], vocab_size=VOCABULARY)
    tokenizer.save(folder / "tokenizer")
    documents = [np.array([*tokens, tokenizer.eod_id]) for tokens in tokenizer.encode_batch(texts)]
    tokens = np.concatenate(documents)
    say(f"{len(tokens):,} tokens of {len(documents):,} documents")
    write_tokens(folder / "text.ds", tokens, np.cumsum([len(one) for one in documents]), np.ones(len(tokens), bool))


def main(page: Path, about: str, variants: Mapping[str, Sequence[str]], draw: Callable[[], None]) -> None:
    """The command line of a page: train what is missing, then print its table and draw its picture.

    Args:
        page: its script, beside which its recipe and results are.
        about: what ``--help`` says.
        variants: what is compared, by settings of the recipe.
        draw: prints and draws what is measured.
    """
    parser = argparse.ArgumentParser(description=f"{about}; see {page.stem}.md.")
    parser.add_argument("--dir", type=Path, default=Path("runs") / page.stem, help="where data and runs are kept")
    parser.add_argument("--seeds", default="0,1,2", help="of the weights and of the order of the data")
    parser.add_argument("--draw", action="store_true", help="print the table and draw the picture of what is measured")
    given = parser.parse_args()
    if not given.draw:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        run_all(page.with_suffix(".toml"), variants, seeds, given.dir, page.with_suffix(".json"))
    draw()


def run_all(
    recipe: Path, variants: Mapping[str, Sequence[str]], seeds: Sequence[int], folder: Path, results: Path
) -> None:
    """Train every variant with every seed, seed by seed, as far as ``results`` does not have it."""
    prepare(folder)
    for seed in seeds:
        for name, changes in variants.items():
            done = read(results)
            if any((one["variant"], one["seed"]) == (name, seed) for one in done):
                continue
            say(f"{name}, seed {seed}")
            measured = {"variant": name, "seed": seed, **_measured(recipe, changes, seed, folder / f"{name}-{seed}")}
            write_json(results, [*read(results), measured])


def read(results: Path) -> list[dict[str, Any]]:
    """What is measured already."""
    return json.loads(results.read_text(encoding="utf-8")) if results.exists() else []


def _measured(recipe: Path, changes: Sequence[str], seed: int, directory: Path) -> dict[str, Any]:
    directory = directory.with_name(directory.name.replace(" ", "-"))
    data = directory.parent.resolve()
    given = [f"tokenizer.path={data / 'tokenizer'}", f'data.tokens=["{data / "text.ds"}"]', f"train.seed={seed}"]
    started = time.perf_counter()
    run(load_recipe(str(recipe), [*given, *changes]), directory)
    seconds = round(time.perf_counter() - started)
    steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["held_out_loss"] for line in steps if "held_out_loss" in line]
    windows = [steps[at : at + WINDOW_STEPS] for at in range(0, len(steps), WINDOW_STEPS)]
    kept = {key: [_mean(part, key) for part in windows] for key in ("loss", "max_violation", "dropped", "grad_norm")}
    return {"training_seconds": seconds, "held_out_loss": held_out, **kept}


def _mean(steps: Sequence[dict[str, Any]], key: str) -> float:
    return round(float(np.mean([step.get(key, 0.0) for step in steps])), 6)


def of_variant(done: Sequence[dict[str, Any]], name: str, key: str) -> np.ndarray:
    """[seeds, numbers] of one variant, in the order of the seeds."""
    return np.array([one[key] for one in sorted(done, key=lambda one: one["seed"]) if one["variant"] == name])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of a few numbers, and half of its 95 % interval by Student's t."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), half
