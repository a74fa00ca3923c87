"""The claim of MiniMax-01 on two cores: models of equal size that differ in their layers read the same tokens.

The paper's claim (arXiv 2501.08313, section 2.2, figures 7 and 8): lightning attention alone fails at retrieval, and
seven layers of it to one of softmax attention retrieve as well as softmax attention does. Here every model reads text,
text with numbers planted in it (the data stage ``recall``), and multi-query associative recall. Each finished run is
kept in ``claim.json`` and not done again: the same command goes on where it was stopped.

    python docs/results/claim.py --seeds 0,1,2
    python docs/results/claim.py --speed
    python docs/results/claim.py --draw
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from leyden.core.device import find_device
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.builds import load_build_recipe, run_build
from leyden.data.builds.tokens import open_groups
from leyden.evaluate import Options, evaluate
from leyden.evaluate.opening import open_model
from leyden.evaluate.tasks.mqar import recall_sequence
from leyden.model import HybridLM, count_model
from leyden.recipes import load_recipe, run
from leyden.recipes.schema import Recipe
from leyden.tokenizer import Tokenizer

HERE = Path(__file__).parent
RECIPE = HERE / "claim.toml"
LAYERS = 8
MIXERS = {
    "softmax": ["full_attention"] * LAYERS,
    "lightning": ["linear_attention"] * LAYERS,
    "hybrid": ["linear_attention"] * (LAYERS - 1) + ["full_attention"],
    "window": ["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
    "cosformer2": ["cosformer2_attention"] * (LAYERS - 1) + ["full_attention"],
    "hgrn2": ["hgrn2_attention"] * (LAYERS - 1) + ["full_attention"],
}
"""The models that are compared, by the kinds of their layers."""
WINDOW = 64
"""Keys that a layer with a window sees; an eighth of the rows that are trained on."""
PARAMETERS = 440_000
"""Of every model, to within 768: the width of the feed-forward makes up for what a kind of layer has less."""
GROUPS = ("text", "recall", "mqar")
SEQUENCE = 128
"""Tokens of a training sequence of associative recall."""
PAIRS = (4, 8, 16)
NUM_SEQUENCES = 16_384
TASKS = (
    ("mqar", Options(lengths=(SEQUENCE,), pairs=(2, 4, 8, 16, 24), samples=64)),
    ("niah", Options(lengths=(256, 512, 1024, 2048), depths=5, samples=10)),
)
SPEED_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
SPEED_TOKENS = 16384
"""Of a step that is timed, whatever the length of its rows."""


def prepare(folder: Path) -> None:
    """Make the tokenizer and the token files of the three groups, unless they are there."""
    if (folder / "mqar.ds.index").exists():
        return
    build = folder / "build"
    run_build(load_build_recipe(HERE / "claim-data.toml"), build)
    shards = open_groups(build / "tokens")
    for name in GROUPS[:2]:
        tokens = shards[name].gather(shards[name].starts, shards[name].lengths)
        write_tokens(folder / f"{name}.ds", tokens, np.cumsum(shards[name].lengths))
    write_mqar(folder / "mqar.ds", Tokenizer.load(build / "tokenizer"))


def write_mqar(path: Path, tokenizer: Tokenizer) -> None:
    """Sequences of multi-query associative recall, of which the answers alone are learned."""
    ids = [id for id in range(tokenizer.vocab_size) if not tokenizer.is_special(id) and tokenizer.token_bytes(id)]
    generator, vocabulary = np.random.default_rng(1), np.array(ids, np.int64)
    tokens = np.zeros((NUM_SEQUENCES, SEQUENCE), np.int64)
    learned = np.zeros((NUM_SEQUENCES, SEQUENCE), bool)
    for index in range(NUM_SEQUENCES):
        made = recall_sequence(vocabulary, SEQUENCE - 2, PAIRS[index % len(PAIRS)], generator)
        tokens[index] = [tokenizer.bos_id, *made.tokens, tokenizer.eod_id]
        learned[index, 1 + made.answers] = True
    write_tokens(path, tokens.ravel(), np.arange(1, NUM_SEQUENCES + 1) * SEQUENCE, learned.ravel())


def write_tokens(path: Path, tokens: np.ndarray, ends: np.ndarray, learned: np.ndarray | None = None) -> None:
    """A token file in datatrove's format, its index last."""
    tokens.astype("<u2").tofile(path)
    if learned is not None:
        learned.astype("?").tofile(path.with_name(f"{path.name}.loss"))
    ends.astype("<u8").tofile(path.with_name(f"{path.name}.index"))


def recipe_of(mixer: str, seed: int, folder: Path) -> Recipe:
    """The recipe of a run: with its data, seed and layers, and as wide as makes all models of one size."""
    data = folder.resolve()
    settings = [
        f"tokenizer.path={data / 'build' / 'tokenizer'}",
        *(f'data.tokens.{name}=["{data / name}.ds"]' for name in GROUPS),
        f"train.seed={seed}",
        f"model.layer_types={json.dumps(MIXERS[mixer])}",
        *([f"model.sliding_window={WINDOW}"] if mixer == "window" else []),
    ]
    recipe = load_recipe(str(RECIPE), settings)
    a_unit_of_width = 3 * recipe.model.hidden_size * LAYERS
    excess = count_model(recipe.model).parameters - PARAMETERS
    width = recipe.model.intermediate_size - round(excess / a_unit_of_width)
    return load_recipe(str(RECIPE), [*settings, f"model.intermediate_size={width}"])


def measure(mixer: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one model and ask it all tasks; what is there already is not done again."""
    directory, started = folder / f"{mixer}-{seed}", time.perf_counter()
    recipe = recipe_of(mixer, seed, folder)
    run(recipe, directory)
    source, subject = open_model(str(directory), find_device(None), ())
    lines = [line for name, how in TASKS for line in evaluate(source, subject, [name], how, directory / "scores")]
    watched = [json.loads(line) for line in (directory / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "mixer": mixer,
        "seed": seed,
        "parameters": count_model(recipe.model).parameters,
        "tokens": metrics[-1]["tokens"],
        "seconds": round(time.perf_counter() - started),
        "train_loss": round(statistics.fmean(one["loss"] for one in metrics[-50:]), 4),
        "held_out": [line for line in watched if "step" in line][-1],
        **{line["task"]: {key: line[key] for key in ("value", "interval", "n", "cells")} for line in lines},
    }


def step_seconds(recipe: Recipe, length: int) -> float:
    """The median time of a forward and backward pass over :data:`SPEED_TOKENS` tokens in rows of ``length``."""
    model = HybridLM(recipe.model)
    tokens = torch.randint(
        0, recipe.model.vocab_size, (1, SPEED_TOKENS + 1), generator=torch.Generator().manual_seed(0)
    )
    bounds = torch.arange(0, SPEED_TOKENS + 1, length, dtype=torch.int32)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        hidden = model.features(tokens[:, :-1], cu_seqlens=bounds).hidden
        model.cross_entropy(hidden, tokens[:, 1:])[0].backward()
        model.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def measure_speed(folder: Path, mixers: Sequence[str]) -> None:
    """Training tokens a second by length of the rows, at constant tokens a step, in turn for all models."""
    rates = {
        mixer: {
            length: round(SPEED_TOKENS / step_seconds(recipe_of(mixer, 0, folder), length)) for length in SPEED_LENGTHS
        }
        for mixer in mixers
    }
    write_json(HERE / "claim-speed.json", rates)
    print("| tokens/s in rows of | " + " | ".join(map(str, SPEED_LENGTHS)) + " |")
    print("|---" * (len(SPEED_LENGTHS) + 1) + "|")
    for mixer, by_length in rates.items():
        print(f"| {mixer} | " + " | ".join(f"{rate:,}" for rate in by_length.values()) + " |")


def mean_over_seeds(values: Sequence[float]) -> str:
    """The mean, and half of its 95 % interval by Student's t where there are several seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def shares(runs: Sequence[dict[str, Any]], task: str, axis: str) -> dict[int, list[float]]:
    """The mean score of each run, by one fact of the cells."""
    by_fact: dict[int, list[float]] = {}
    for one in runs:
        cells = one[task]["cells"]
        for fact in sorted({cell[axis] for cell in cells}):
            by_fact.setdefault(fact, []).append(statistics.fmean(c["value"] for c in cells if c[axis] == fact))
    return by_fact


def draw(done: Sequence[dict[str, Any]]) -> None:
    """Print a table of all runs, a row a model, and draw both tasks by number of pairs and by length."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    print("| model | seeds | held-out loss | mqar | niah |\n|---|---|---|---|---|")
    for mixer in MIXERS:
        runs = [one for one in done if one["mixer"] == mixer]
        if not runs:
            continue
        figures = [
            mean_over_seeds([one["held_out"]["held_out_loss"] for one in runs]),
            *(mean_over_seeds([one[task]["value"] for one in runs]) for task in ("mqar", "niah")),
        ]
        print(f"| {mixer} | {', '.join(str(one['seed']) for one in runs)} | " + " | ".join(figures) + " |")
        for panel, task, axis in ((panels[0], "mqar", "pairs"), (panels[1], "niah", "length")):
            by_fact = shares(runs, task, axis)
            (line,) = panel.plot(
                list(by_fact), [statistics.fmean(v) for v in by_fact.values()], label=mixer, marker="o"
            )
            low, high = ([limit(values) for values in by_fact.values()] for limit in (min, max))
            panel.fill_between(list(by_fact), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            panel.set(xscale="log", xlabel=f"{task}: {axis}", ylim=(-0.03, 1.03))
            panel.set_xticks(list(by_fact), list(map(str, by_fact)))
            panel.minorticks_off()
    panels[0].set_ylabel("share recalled (all seeds' range)")
    panels[1].legend(frameon=False)
    figure.savefig(HERE / "claim.svg", metadata={"Date": None})


def write_json(path: Path, data: object) -> None:
    """Whole or not at all."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="The claim of MiniMax-01, measured; see claim.md beside this file.")
    parser.add_argument("--dir", type=Path, default=Path("runs/claim"), help="where data and runs are kept")
    parser.add_argument("--mixers", default=",".join(MIXERS), help="which models")
    parser.add_argument("--seeds", default="0", help="of the weights and of the order of the data")
    parser.add_argument("--speed", action="store_true", help="time training by length instead, on an idle machine")
    parser.add_argument("--draw", action="store_true", help="print the table and draw claim.svg of what is measured")
    given = parser.parse_args()
    results, mixers = HERE / "claim.json", given.mixers.split(",")
    done = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    if not given.draw:
        given.dir.mkdir(parents=True, exist_ok=True)
        prepare(given.dir)
    if given.speed:
        measure_speed(given.dir, mixers)
    elif not given.draw:
        for seed in map(int, given.seeds.split(",")):
            for mixer in mixers:
                if all((one["mixer"], one["seed"]) != (mixer, seed) for one in done):
                    say(f"{mixer}, seed {seed}")
                    done.append(measure(mixer, seed, given.dir))
                    write_json(results, done)
    if done:
        draw(done)


if __name__ == "__main__":
    main()
