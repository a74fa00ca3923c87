"""What fine-tuning, rejection sampling, DPO and online reinforcement learning each add, on tasks with a verifier.

A small base model is fine-tuned too briefly to be good; from there, each of the others goes on alone, on the same
training prompts (:mod:`leyden.align.tasks`). Accuracy is the share of held-out tasks that the likeliest tokens answer.

    python docs/results/alignment.py --dir runs/alignment --seeds 0,1,2

See alignment.md beside this file. What is in the folder already is not made again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leyden import Engine, Sampling, load
from leyden.align.preference.best_and_worst import best_and_worst
from leyden.align.rollouts.prompts import Prompts
from leyden.align.tasks import ShortTasks
from leyden.core.config import read_toml
from leyden.recipes import run
from leyden.recipes.loader import parse_recipe, shipped_recipes
from leyden.train import read_metrics

SAMPLES, SAMPLED_PROMPTS, MOST_TOKENS = 8, 512, 12
LEARNED = ("minimax", "grpo", "cispo")
WAYS = ("sft", "rejection sampling", "dpo", *LEARNED)
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for a 95 % interval of the mean, by the number of seeds."""


def stage(name: str, **changes: Any) -> dict[str, Any]:
    """A stage of the recipe align-tiny, changed."""
    shipped = read_toml(shipped_recipes()["align-tiny"])["stage"]
    found = next(one for one in shipped if one["name"] == name)
    return {key: value for key, value in {**found, **changes}.items() if value is not None}


def carried_out(directory: Path, seed: int, stages: list[dict[str, Any]], start: Path | None = None) -> Path:
    """The model of a run of these stages, from initial weights or from a model."""
    shipped = read_toml(shipped_recipes()["align-tiny"])
    given: dict[str, Any] = {
        "train": {**shipped["train"], "seed": seed},
        "stage": stages,
        "evaluate": {"every_steps": 5},
    }
    given |= {"model": {"from": str(start)}} if start else {key: shipped[key] for key in ("model", "tokenizer")}
    return run(parse_recipe(given, str(directory)), directory)


def samples(model: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Answers to training prompts, with their rewards."""
    loaded, tokenizer = load(model)
    assert tokenizer is not None, "a run saves its tokenizer"
    engine, tasks = Engine(loaded, tokenizer), ShortTasks()
    prompts = Prompts(tasks, tokenizer, longest=100, seed=seed).at(0, SAMPLED_PROMPTS)
    sampling = Sampling(max_tokens=MOST_TOKENS, n=SAMPLES, temperature=1.0, seed=seed)
    made = engine.generate([prompt.tokens for prompt in prompts], sampling)
    for number, one in enumerate(made):
        row = prompts[number // SAMPLES].row
        yield {"prompt": row["prompt"], "response": one.text, "reward": tasks.score(row, one.text).reward}


def right_answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each prompt its right answers, each once: what is learned from after rejection sampling."""
    kept = dict.fromkeys((row["prompt"], row["response"]) for row in rows if row["reward"] == 1)
    return [{"prompt": prompt, "completion": response} for prompt, response in kept]


def written(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def accuracy(model: Path) -> float:
    """The share of all held-out tasks that the likeliest tokens answer."""
    loaded, tokenizer = load(model)
    assert tokenizer is not None, "a run saves its tokenizer"
    tasks = ShortTasks()
    rows = list(tasks.held_out())
    prompts = [tokenizer.encode_chat([{"role": "user", "content": row["prompt"]}]) for row in rows]
    made = Engine(loaded, tokenizer).generate(prompts, Sampling(max_tokens=MOST_TOKENS, temperature=0))
    return statistics.mean(tasks.score(row, one.text).reward or 0.0 for row, one in zip(rows, made, strict=True))


def facts(directory: Path) -> Mapping[str, float]:
    """Of a run of reinforcement learning, the means over its last ten steps, and the largest drift of all."""
    lines = read_metrics(directory / "metrics.jsonl")
    names = ("reward", "entropy", "discarded", "clipped", "completion_tokens_mean", "kl")
    found = {name: [line[name] for line in lines[-10:] if line.get(name) is not None] for name in names}
    drift = max(line["drift"] for line in lines if line.get("drift") is not None)
    return {**{name: statistics.mean(values) for name, values in found.items() if values}, "drift": drift}


def measured(place: Path, seed: int, steps: int) -> Iterator[dict[str, Any]]:
    """One line a way, of one seed."""
    base = [stage("base"), stage("sft-short", epochs=None, steps=60)]
    sft = carried_out(place / "sft", seed, base)
    yield {"way": "sft", "accuracy": accuracy(sft)}
    rows = list(samples(sft, seed))
    chats = written(place / "right.jsonl", right_answers(rows))
    short = stage("sft-short", epochs=None, steps=steps, lr=5e-4, data={"chats": [str(chats)]})
    yield {"way": "rejection sampling", "accuracy": accuracy(carried_out(place / "rejection", seed, [short], sft))}
    pairs = written(place / "pairs.jsonl", [*best_and_worst((row, row["reward"]) for row in rows).pairs])
    preferred = stage("dpo-short", steps=steps, data={"preferences": [str(pairs)]})
    yield {"way": "dpo", "accuracy": accuracy(carried_out(place / "dpo", seed, [preferred], sft))}
    for preset in LEARNED:
        rl = stage("rl", steps=steps)
        rl["rl"] = {**rl["rl"], "algorithm": {"preset": preset}}
        model = carried_out(place / preset, seed, [rl], sft)
        yield {"way": preset, "accuracy": accuracy(model), **facts(place / preset)}


def interval(values: list[float]) -> str:
    """The mean, and half of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/alignment"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=40, help="of every way behind the fine-tuning")
    given = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for seed in map(int, given.seeds.split(",")):
        place = given.dir / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        for line in measured(place, seed, given.steps):
            lines.append({"seed": seed, **line})
            print(json.dumps(lines[-1]), flush=True)
    written(given.dir / "results.jsonl", lines)
    print("\n| way | accuracy on held-out tasks |\n|---|---|")
    for way in WAYS:
        print(f"| {way} | {interval([line['accuracy'] for line in lines if line['way'] == way])} |")
    names = ("reward", "entropy", "discarded", "clipped", "completion_tokens_mean", "kl", "drift")
    print(f"\n| algorithm | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for way in LEARNED:
        of_way = [line for line in lines if line["way"] == way]
        cells = [interval([line[name] for line in of_way if name in line] or [math.nan]) for name in names]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
