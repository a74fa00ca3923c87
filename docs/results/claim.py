"""The claim of MiniMax-01 on two cores: models of equal size that differ in their layers read the same tokens.

The paper's claim (arXiv 2501.08313, section 2.2, figures 7 and 8): lightning attention alone fails at retrieval, and
seven layers of it to one of softmax attention retrieve as well as softmax attention does. Here every model begins
with the same rough circuit for looking up (``initialization = "induction"``), reads multi-query associative recall of 4
to 32 pairs, and then the same mixed with text. Each finished run is kept in ``claim.json`` and not done again: the same
command goes on where it was stopped.

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
GROUPS = ("text", "mqar")
TOKENS_A_PAIR = (5, 9)
"""Tokens of a sequence of associative recall for each of its pairs, drawn from 5 to 8."""
PAIRS = (4, 8, 16, 32)
NUM_SEQUENCES = 16_384
ASKED = Options(lengths=(256,), pairs=(4, 8, 16, 32), samples=32)
"""What each model is asked for at its end."""
SPEED_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
SPEED_TOKENS = 16384
SPEED_ROUNDS = 5
"""Of a step that is timed, whatever the length of its rows."""


def prepare(folder: Path) -> None:
    """Make the tokenizer and the token files of the three groups, unless they are there."""
    if (folder / "mqar.ds.index").exists():
        return
    build = folder / "build"
    run_build(load_build_recipe(HERE / "claim-data.toml"), build)
    shards = open_groups(build / "tokens")
    text, tokenizer = shards["text"], Tokenizer.load(build / "tokenizer")
    tokens = text.gather(text.starts, text.lengths)
    write_tokens(folder / "text.ds", tokens, np.cumsum(text.lengths))
    write_mqar(folder / "mqar.ds", tokenizer)


def write_mqar(path: Path, tokenizer: Tokenizer) -> None:
    """Sequences of multi-query associative recall, of which the answers alone are learned."""
    ids = [id for id in range(tokenizer.vocab_size) if not tokenizer.is_special(id) and tokenizer.token_bytes(id)]
    generator, vocabulary = np.random.default_rng(1), np.array(ids, np.int64)
    parts, learned = [], []
    for index in range(NUM_SEQUENCES):
        pairs = PAIRS[index % len(PAIRS)]
        made = recall_sequence(vocabulary, pairs * int(generator.integers(*TOKENS_A_PAIR)), pairs, generator)
        parts.append(np.array([tokenizer.bos_id, *made.tokens, tokenizer.eod_id]))
        learned.append(np.zeros(len(parts[-1]), bool))
        learned[-1][1 + made.answers] = True
    write_tokens(path, np.concatenate(parts), np.cumsum([len(part) for part in parts]), np.concatenate(learned))


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
    (mqar,) = evaluate(source, subject, ["mqar"], ASKED, directory / "scores")
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
        "mqar": {key: mqar[key] for key in ("value", "interval", "n", "cells")},
    }


def step_seconds(model: HybridLM, length: int) -> float:
    """The time of a forward and backward pass over :data:`SPEED_TOKENS` tokens in rows of ``length``."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (1, SPEED_TOKENS + 1), generator=generator)
    bounds = torch.arange(0, SPEED_TOKENS + 1, length, dtype=torch.int32)
    started = time.perf_counter()
    hidden = model.features(tokens[:, :-1], cu_seqlens=bounds).hidden
    model.cross_entropy(hidden, tokens[:, 1:])[0].backward()
    model.zero_grad()
    return time.perf_counter() - started


def measure_speed(folder: Path, mixers: Sequence[str]) -> None:
    """Training tokens a second by length of the rows, at constant tokens a step; models and lengths take turns."""
    models = {mixer: HybridLM(recipe_of(mixer, 0, folder).model) for mixer in mixers}
    times = {mixer: {length: [] for length in SPEED_LENGTHS} for mixer in mixers}
    for turn in range(-1, SPEED_ROUNDS):
        for mixer, model in models.items():
            for length in SPEED_LENGTHS:
                seconds = step_seconds(model, length)
                if turn >= 0:  # the first round only warms up
                    times[mixer][length].append(seconds)
    rates = {
        mixer: {length: round(SPEED_TOKENS / statistics.median(one)) for length, one in by_length.items()}
        for mixer, by_length in times.items()
    }
    write_json(HERE / "claim-speed.json", rates)
    print("| training tokens/s in rows of | " + " | ".join(f"{length:,}" for length in SPEED_LENGTHS) + " |")
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


def recalled(runs: Sequence[dict[str, Any]]) -> dict[int, list[float]]:
    """The share that each run recalls, by the number of pairs."""
    return {
        pairs: [c["value"] for one in runs for c in one["mqar"]["cells"] if c["pairs"] == pairs]
        for pairs in ASKED.pairs or ()
    }


def text_loss(one: dict[str, Any]) -> float:
    """Nats a token of the text that no run trains on."""
    return one["held_out"]["sources"]["text"]["loss"]


def draw(done: Sequence[dict[str, Any]]) -> None:
    """Print a table of all runs, a row a model, and draw what each recalls by the number of pairs, and its loss."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    recall, losses = figure.subplots(1, 2)
    print("| model | seeds | loss on text | " + " | ".join(f"{pairs} pairs" for pairs in ASKED.pairs or ()) + " |")
    print("|---" * (3 + len(ASKED.pairs or ())) + "|")
    for place, mixer in enumerate(MIXERS):
        runs = [one for one in done if one["mixer"] == mixer]
        if not runs:
            continue
        by_pairs, loss = recalled(runs), [text_loss(one) for one in runs]
        figures = [mean_over_seeds(values) for values in (loss, *by_pairs.values())]
        print(f"| {mixer} | {', '.join(str(one['seed']) for one in runs)} | " + " | ".join(figures) + " |")
        (line,) = recall.plot(list(by_pairs), [statistics.fmean(v) for v in by_pairs.values()], label=mixer, marker="o")
        low, high = ([limit(values) for values in by_pairs.values()] for limit in (min, max))
        recall.fill_between(list(by_pairs), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        losses.plot([place] * len(loss), loss, "o", color=line.get_color())
    recall.set(xscale="log", xlabel="pairs", ylabel="share recalled (range of seeds)", ylim=(-0.03, 1.03))
    recall.set_xticks(list(ASKED.pairs or ()), [str(pairs) for pairs in ASKED.pairs or ()])
    recall.minorticks_off()
    recall.legend(frameon=False)
    losses.set_xticks(range(len(MIXERS)), list(MIXERS), rotation=20)
    losses.set(ylabel="nats a token of unseen text", xlim=(-0.5, len(MIXERS) - 0.5))
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
