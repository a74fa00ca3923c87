"""The state of a run, read from its folder: whether it goes on, has stopped or is finished, and its figures."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leyden.checkpoint.origin import read_recipe
from leyden.core.lock import lock_holder
from leyden.train import BatchSchedule, read_metrics

_DEPTH = 3
"""Folders below the one that is named, in which runs are looked for."""
_END_SHARE = 0.1


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance.

    Attributes:
        directory: of the run.
        state: ``running``: a process holds its folder; ``finished``: it has a model and a report; else ``stopped``.
        step, total_steps: optimizer steps taken, and of all stages; the latter None while a stage has no number.
        tokens: trained on.
        loss: mean of the last tenth of the steps, in nats a token; None before the first step.
        held_out_loss: last measured, in nats a token.
        bits_per_byte: of the finished model on held-out documents; before that, last measured in training.
        tokens_per_second: median over the last tenth of the steps.
        changed: when its metrics last changed, in seconds since 1970; 0 where there are none.
    """

    directory: Path
    state: Literal["running", "finished", "stopped"]
    step: int
    total_steps: int | None
    tokens: int
    loss: float | None
    held_out_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    changed: float

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "directory": str(self.directory)}


def find_runs(folder: Path) -> list[Path]:
    """The runs in ``folder`` and in the folders below it, the folder itself first if it is one; by name."""
    return list(_runs(folder, _DEPTH))


def is_run(directory: Path) -> bool:
    """Whether a folder is a run's."""
    return (directory / "recipe.toml").is_file() and any(
        (directory / name).exists() for name in ("metrics.jsonl", "data.json", "build.json", "checkpoints")
    )


def is_finished(directory: Path) -> bool:
    """Whether a run has its model, its evaluation and its report."""
    return all((directory / name).exists() for name in ("final", "eval.jsonl", "report/index.html"))


def summarise(directory: Path) -> RunSummary:
    """Read a run's metrics, evaluation and recipe."""
    metrics = read_metrics(directory / "metrics.jsonl")
    end = end_of(metrics)
    measured = [line for line in metrics if line.get("held_out_loss") is not None]
    last: Mapping[str, Any] = measured[-1] if measured else {}
    finished = [line for line in read_metrics(directory / "eval.jsonl") if "stage" not in line]
    results = [line["value"] for line in finished if line.get("task") == "bits_per_byte"]
    state = "finished" if is_finished(directory) else "stopped"
    return RunSummary(
        directory=directory,
        state="running" if lock_holder(directory) else state,
        step=metrics[-1]["step"] if metrics else 0,
        total_steps=_total_steps(read_recipe(directory)),
        tokens=metrics[-1]["tokens"] if metrics else 0,
        loss=_mean([line["loss"] for line in end if line.get("loss") is not None]),
        held_out_loss=last.get("held_out_loss"),
        bits_per_byte=results[-1] if results else last.get("held_out_bits_per_byte"),
        tokens_per_second=_median([line["tokens_per_second"] for line in end if line.get("tokens_per_second")]),
        changed=_changed(directory / "metrics.jsonl"),
    )


def end_of(metrics: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The last tenth of the steps, which stands for where training is."""
    return metrics[-max(1, round(len(metrics) * _END_SHARE)) :]


def recipe_differences(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The keys in which recipes differ, as ``stage.0.lr``, each with what every recipe says (empty where nothing)."""
    flat = [dict(_flatten(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [(key, [one.get(key, "") for one in flat]) for key in keys if len({one.get(key) for one in flat}) > 1]


def age(changed: float) -> str:
    """How long ago that was, in words."""
    seconds = max(0.0, time.time() - changed)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if depth and folder.is_dir():
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _runs(Path(entry.path), depth - 1)


def _total_steps(recipe: Mapping[str, Any]) -> int | None:
    stages = recipe.get("stage", [])
    counts = [_steps(stage) for stage in stages] if isinstance(stages, list) else []
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _steps(stage: Mapping[str, Any]) -> int | None:
    if stage.get("batch") == "critical":
        return None
    if "steps" in stage:
        return int(stage["steps"])
    if "tokens" in stage and stage.get("batch_tokens"):
        return BatchSchedule.of(stage["batch_tokens"], 1).steps_for(int(stage["tokens"]))
    return None


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{path}.{index}")
    else:
        yield path, json.dumps(value)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
