"""What each stage of ``leyden run align-tiny`` adds, and what the long ones do, on held-out tasks.

The shipped recipe is run as it is, and without its two long stages. Base model and first fine-tuning of a seed are the
same in both, if as many threads compute them. Finished runs are not run again: the same command goes on where it was
stopped.

    python docs/results/align_tiny.py --dir runs/align-tiny-seeds --seeds 0,1,2

See align-tiny.md beside this file.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.recipes import load_recipe, run
from leyden.recipes.loader import parse_recipe
from leyden.train import read_metrics

RESULTS = Path(__file__).resolve().parent / "align-tiny.json"
WAYS = ("all stages", "without the long stages")
LONG = ("sft-long", "dpo-long")
SHORT_TASKS = ("say", "turn", "last")
TASKS = (*SHORT_TASKS, "sum", "keep")


def recipe_of(way: str, seed: int) -> dict[str, Any]:
    """The shipped recipe with a seed, as one of the ways has it."""
    given = load_recipe("align-tiny").model_dump(mode="json", exclude_unset=True)
    if way != WAYS[0]:
        given["stage"] = [stage for stage in given["stage"] if stage["name"] not in LONG]
    return {**given, "train": {**given["train"], "seed": seed}}


def measure(way: str, seed: int, directory: Path) -> dict[str, Any]:
    """Run one way; what held-out tasks it solved after each stage, and how long each stage took."""
    run(parse_recipe(recipe_of(way, seed), way), directory)
    steps = read_metrics(directory / "metrics.jsonl")
    stages = []
    for line in read_metrics(directory / "eval.jsonl"):
        if line["task"] == "held_out_reward":
            times = [datetime.fromisoformat(one["time"]) for one in steps if one["stage"] == line["stage"]]
            stages.append(
                {
                    "stage": line["stage"],
                    "steps": len(times),
                    "seconds": round((times[-1] - times[0]).total_seconds(), 1),
                    "tasks": {task: round(line["components"][task], 4) for task in TASKS},
                    "samples": line["samples"],
                }
            )
    return {"way": way, "seed": seed, "stages": stages}


def short(stage: dict[str, Any]) -> float:
    """The mean accuracy of the short tasks but ``sum``, each as much as the others."""
    return statistics.fmean(stage["tasks"][task] for task in SHORT_TASKS)


def tables(done: Sequence[dict[str, Any]]) -> None:
    """Print what each way solves after each stage: the mean over seeds, and short and long tasks by seed."""
    for way in WAYS:
        runs = [one["stages"] for one in done if one["way"] == way]
        if not runs:
            continue
        print(f"\n{way}\n\n| after stage | short | {' | '.join((*SHORT_TASKS, 'sum', 'keep (long)'))} |\n{'|---' * 7}|")
        for same in zip(*runs, strict=True):
            cells = [_each([short(one) for one in same])]
            cells += [f"{statistics.fmean(one['tasks'][task] for one in same):.3f}" for task in TASKS[:-1]]
            cells.append(_each([one["tasks"]["keep"] for one in same]))
            print(f"| {same[0]['stage']} | {' | '.join(cells)} |")


def _each(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.3f} ({', '.join(f'{value:.2f}' for value in values)})"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="What each stage of align-tiny adds; see align-tiny.md beside this.")
    parser.add_argument("--dir", type=Path, default=Path("runs/align-tiny-seeds"), help="where runs are kept")
    parser.add_argument("--seeds", default="0,1,2", help="of weights, order of the data and what is drawn")
    given = parser.parse_args()
    done = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    for seed in map(int, given.seeds.split(",")):
        for way in WAYS:
            if all((one["way"], one["seed"]) != (way, seed) for one in done):
                say(f"{way}, seed {seed}")
                place = given.dir / f"{way.replace(' ', '-')}-{seed}"
                done.append(measure(way, seed, place))
                with atomic_file(RESULTS) as part:
                    part.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    tables(done)


if __name__ == "__main__":
    main()
