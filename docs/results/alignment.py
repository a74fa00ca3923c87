"""What fine-tuning, rejection sampling, DPO and online reinforcement learning each add, on tasks with a verifier.

A small base model (alignment.toml) is fine-tuned on right answers, and then on answers of which two in five are wrong,
as careless people write them; from there, each of the others goes on alone, with as many graded completions of the same
training prompts, and as many optimizer steps. The tasks are lists of words to say again, turn around or name the last
of, and digits to sort. Each finished way is kept in ``alignment.json`` and
not done again: the same command goes on where it was stopped.

    python docs/results/alignment.py --dir runs/alignment --seeds 0,1,2,3,4
    python docs/results/alignment.py --draw

See alignment.md beside this file.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from leyden import Engine, Sampling, load
from leyden.align.preference.best_and_worst import best_and_worst
from leyden.align.rollouts.prompts import Prompts
from leyden.core.config import read_toml
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.data.hold_out_rule import draw as draw_share
from leyden.recipes import run
from leyden.recipes.loader import parse_recipe
from leyden.train import read_metrics

HERE = Path(__file__).resolve().parent
RECIPE = read_toml(HERE / "alignment.toml")
ROUNDS, PROMPTS, GROUP, UPDATES = 32, 16, 8, 2
"""Of reinforcement learning. All ways grade ``ROUNDS * PROMPTS * GROUP`` completions and take ``ROUNDS * UPDATES``
steps."""
MOST_TOKENS = 12
OFFLINE = ("rejection sampling", "dpo")
ONLINE = ("minimax", "grpo", "cispo")
WAYS = ("base", "sft", *OFFLINE, *ONLINE)
WORDS = ["red", "blue", "green", "black", "white", "apple", "bread", "water", "stone", "river", "house", "tree"]
DIGITS = list("0123456789")
TASKS: Mapping[str, tuple[list[str], Callable[[list[str]], list[str]]]] = {
    "say": (WORDS, list),
    "turn": (WORDS, lambda things: things[::-1]),
    "last": (WORDS, lambda things: things[-1:]),
    "sort": (DIGITS, sorted),
}
"""What a list is made of, and what is asked of it."""
TASK_ROWS, LISTS, HELD_OUT = 6000, 2000, 0.1
WRONG = 0.4
"""The share of wrong answers in the second part of fine-tuning: the model draws from both kinds afterwards, and the
others can tell it which is meant."""
LAST_ROUNDS = 8
"""Over which the table of algorithms has means."""
FACTS = ("reward", "kl", "entropy", "clipped", "discarded", "completion_tokens_mean", "no_signal", "drift")


class Lists:
    """Tasks on two or three words or digits, one a line: an environment of :mod:`leyden.align.rollouts.environment`.

    A task is held out by a hash of its question.
    """

    def prompts(self) -> list[dict[str, Any]]:
        """Those that are learned from."""
        return [row for row in self._rows() if draw_share(row["prompt"].encode()) >= HELD_OUT]

    def held_out(self) -> list[dict[str, Any]]:
        """Those that are measured."""
        return [row for row in self._rows() if draw_share(row["prompt"].encode()) < HELD_OUT]

    def score(self, row: Mapping[str, Any], response: str) -> float:
        """1 for the right answer and nothing else."""
        return float(response.strip() == row["completion"])

    def _rows(self) -> list[dict[str, Any]]:
        rng, rows = random.Random(0), dict[str, dict[str, Any]]()
        for number in range(TASK_ROWS):
            task = list(TASKS)[number % len(TASKS)]
            things, answer = TASKS[task]
            drawn = rng.sample(things, rng.randint(2, 3))
            question = "\n".join([f"{task}:", *drawn])
            rows[question] = {"prompt": question, "task": task, "completion": "\n".join(answer(drawn))}
        return list(rows.values())


def careless(seed: int) -> list[dict[str, Any]]:
    """Each training task once; of the answers the share ``WRONG`` is wrong: things of the list in an order that is not
    asked for."""
    rng, rows = random.Random(seed), Lists().prompts()
    for row in rows:
        things, right = row["prompt"].split("\n")[1:], row["completion"].split("\n")
        if rng.random() < WRONG:
            answer = rng.sample(things, len(right))
            while answer == right:
                answer = rng.sample(things, len(right))
            row["completion"] = "\n".join(answer)
    return rows


def stage(name: str, **changes: Any) -> dict[str, Any]:
    """A stage of alignment.toml, with what is changed in it."""
    return {**next(one for one in RECIPE["stage"] if one["name"] == name), **changes}


def trained(directory: Path, seed: int, one: dict[str, Any], start: Path | None = None, **data: Any) -> Path:
    """The model of a run of one stage, from initial weights or from a model; one that has ended is not run again."""
    given: dict[str, Any] = {**RECIPE, "train": {**RECIPE["train"], "seed": seed}, "stage": [one], "data": data}
    if start:
        del given["tokenizer"]
        given["model"] = {"from": str(start)}
    return run(parse_recipe(given, str(directory)), directory)


def completions(model: Path, rows: Sequence[Mapping[str, Any]], **sampling: Any) -> list[dict[str, Any]]:
    """Answers of a model to tasks, each with its reward."""
    loaded, tokenizer = load(model)
    assert tokenizer is not None, "a run saves its tokenizer"
    prompts = [tokenizer.encode_chat([{"role": "user", "content": row["prompt"]}]) for row in rows]
    made = Engine(loaded, tokenizer).generate(prompts, Sampling(max_tokens=MOST_TOKENS, **sampling))
    each, score = len(made) // len(rows), Lists().score
    asked = [row for row in rows for _ in range(each)]
    return [
        {"prompt": row["prompt"], "task": row["task"], "response": one.text, "reward": score(row, one.text)}
        for row, one in zip(asked, made, strict=True)
    ]


def drawn_from(model: Path, seed: int) -> list[dict[str, Any]]:
    """As many graded answers to training prompts as reinforcement learning draws."""
    _, tokenizer = load(model)
    assert tokenizer is not None, "a run saves its tokenizer"
    prompts = Prompts(Lists(), tokenizer, longest=100, seed=seed).at(0, ROUNDS * PROMPTS)
    return completions(model, [prompt.row for prompt in prompts], n=GROUP, temperature=1.0, seed=seed)


def lists() -> str:
    """What the base model reads beside programs: lists of the tasks' words and digits, each said again."""
    rng, said = random.Random(0), list[str]()
    for _ in range(LISTS):
        things = "\n".join(rng.sample(WORDS if rng.random() < 0.8 else DIGITS, k=rng.randint(2, 5)))
        said.append(f"{things}\n\n{things}\n")
    return "\n".join(said)


def right_answers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each prompt its right answers, each once: what is learned from after rejection sampling."""
    kept = dict.fromkeys((row["prompt"], row["response"]) for row in rows if row["reward"] == 1)
    return [{"prompt": prompt, "completion": response} for prompt, response in kept]


def written(path: Path, rows: Sequence[Any]) -> str:
    """The path of a file with these rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def accuracy(model: Path) -> dict[str, Any]:
    """Of all held-out tasks, the share that the likeliest tokens answer rightly, and that tokens drawn at temperature 1
    do; the former by task, with some answers."""
    rows = Lists().held_out()
    likeliest, drawn = (completions(model, rows, temperature=t, seed=0) for t in (0.0, 1.0))
    tasks = {one["task"]: [other["reward"] for other in likeliest if other["task"] == one["task"]] for one in likeliest}
    return {
        "accuracy": statistics.fmean(one["reward"] for one in likeliest),
        "accuracy_drawn": statistics.fmean(one["reward"] for one in drawn),
        "tasks": {task: round(statistics.fmean(rewards), 4) for task, rewards in tasks.items()},
        "samples": [{key: one[key] for key in ("prompt", "response")} for one in likeliest[:8]],
    }


def measure(way: str, seed: int, place: Path) -> dict[str, Any]:
    """Train one way behind the models that it begins from, and ask it all held-out tasks."""
    base, sft, directory = place / "base", place / "sft", place / way.replace(" ", "-")
    started, steps, more = time.perf_counter(), ROUNDS * UPDATES, {}
    if way == "base":
        text = place / "lists.txt"
        text.write_text(lists(), encoding="utf-8")
        model = trained(base, seed, stage("base"), text=["python:stdlib/json", str(text)])
    elif way == "sft":
        chats = [written(place / "chats.jsonl", Lists().prompts())]
        before = trained(place / "sft-right", seed, stage("sft"), base / "final", chats=chats)
        more = {"before_careless": {name: accuracy(before)[name] for name in ("accuracy", "accuracy_drawn")}}
        chats = [written(place / "careless.jsonl", careless(seed))]
        model = trained(sft, seed, stage("careless"), before, chats=chats)
    elif way == "rejection sampling":
        rows = drawn_from(sft / "final", seed)
        right = right_answers(rows)
        more = {"completions": len(rows), "right": sum(row["reward"] for row in rows), "learned": len(right)}
        chats = written(place / "right.jsonl", right)
        model = trained(directory, seed, stage("again", steps=steps), sft / "final", chats=[chats])
    elif way == "dpo":
        rows = drawn_from(sft / "final", seed)
        pairs = [*best_and_worst((row, row["reward"]) for row in rows).pairs]
        more = {"completions": len(rows), "pairs": len(pairs)}
        chosen = written(place / "pairs.jsonl", pairs)
        model = trained(directory, seed, stage("dpo", steps=steps), sft / "final", preferences=[chosen])
    else:
        shape: dict[str, Any] = {"environment": f"{HERE / 'alignment.py'}:Lists", "max_tokens": MOST_TOKENS}
        shape |= {"prompts_per_step": PROMPTS, "group_size": GROUP, "updates": UPDATES}
        settings = {**stage("rl")["rl"], **shape, "algorithm": {"preset": way}}
        model = trained(directory, seed, stage("rl", steps=steps, rl=settings), sft / "final")
        more = {"rounds": rounds(directory)}
    seconds = round(time.perf_counter() - started)
    return {"way": way, "seed": seed, "seconds": seconds, **accuracy(model), **more}


def rounds(directory: Path) -> list[dict[str, float]]:
    """Of each round of reinforcement learning what was drawn, and the mean of what its updates say."""
    lines = read_metrics(directory / "metrics.jsonl")
    found = []
    for first in range(0, len(lines), UPDATES):
        told = {name: [line[name] for line in lines[first : first + UPDATES] if name in line] for name in FACTS}
        found.append({name: round(statistics.fmean(values), 6) for name, values in told.items() if values})
    return found


def interval(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and half of its 95 % interval by Student's t where there are several seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def tables(done: Sequence[dict[str, Any]]) -> None:
    """Print accuracies with the gain over fine-tuning of the same seed, and what the algorithms did."""
    by_way = {way: {one["seed"]: one for one in done if one["way"] == way} for way in WAYS}
    tasks = sorted({task for one in done for task in one["tasks"]})
    print(f"| way | seeds | accuracy | gain over sft | drawn at temperature 1 | {' | '.join(tasks)} |")
    print("|---" * (5 + len(tasks)) + "|")
    for way, by_seed in by_way.items():
        if not by_seed:
            continue
        runs = list(by_seed.values())
        before = [by_way["sft"].get(seed) for seed in by_seed]
        gains = [one["accuracy"] - sft["accuracy"] for one, sft in zip(runs, before, strict=True) if sft]
        cells = [
            interval([one["accuracy"] for one in runs]),
            interval(gains) if way in WAYS[2:] else "",
            interval([one["accuracy_drawn"] for one in runs]),
            *(f"{statistics.fmean(one['tasks'][task] for one in runs):.3f}" for task in tasks),
        ]
        print(f"| {way} | {', '.join(map(str, by_seed))} | {' | '.join(cells)} |")
    print(f"\n| algorithm | {' | '.join(FACTS)} |\n{'|---' * (len(FACTS) + 1)}|")
    for way in ONLINE:
        if runs := list(by_way[way].values()):
            values = [late(runs, name) for name in FACTS]
            print(f"| {way} | {' | '.join(interval(each, 4) if each else 'no reference' for each in values)} |")


def late(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Of each run the mean over its last rounds, and of the drift the largest; nothing where it is not measured."""
    last = [[found[name] for found in one["rounds"]] for one in runs if name in one["rounds"][0]]
    return [max(one) if name == "drift" else statistics.fmean(one[-LAST_ROUNDS:]) for one in last]


def draw(done: Sequence[dict[str, Any]]) -> None:
    """Draw what each algorithm's rounds say, as the mean of its seeds with their range."""
    names = FACTS[:6]
    figure = Figure(figsize=(10, 5), layout="constrained")
    for name, axes in zip(names, figure.subplots(2, 3).flat, strict=True):
        for way in ONLINE:
            curves = [
                [found[name] for found in one["rounds"]]
                for one in done
                if one["way"] == way and name in one["rounds"][0]
            ]
            if not curves:
                continue
            places = range(1, len(curves[0]) + 1)
            (line,) = axes.plot(places, [statistics.fmean(each) for each in zip(*curves, strict=True)], label=way)
            low, high = ([limit(each) for each in zip(*curves, strict=True)] for limit in (min, max))
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel="round", yscale="log" if name == "kl" else "linear")
    figure.axes[0].legend(frameon=False)
    figure.savefig(HERE / "alignment.svg", metadata={"Date": None})


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="What each way of alignment adds; see alignment.md beside this file.")
    parser.add_argument("--dir", type=Path, default=Path("runs/alignment"), help="where runs are kept")
    parser.add_argument(
        "--seeds", default="0,1,2,3,4", help="of the weights, of the order of the data and of what is drawn"
    )
    parser.add_argument("--draw", action="store_true", help="print the tables and draw alignment.svg of what is there")
    given = parser.parse_args()
    results = HERE / "alignment.json"
    done = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    for seed in () if given.draw else map(int, given.seeds.split(",")):
        place = given.dir / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        for way in WAYS:
            if all((one["way"], one["seed"]) != (way, seed) for one in done):
                say(f"{way}, seed {seed}")
                done.append(measure(way, seed, place))
                with atomic_file(results) as part:
                    part.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    tables(done)
    draw(done)


if __name__ == "__main__":
    main()
