"""What tests of whole runs compare, and how they disturb one."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leyden.tokenizer import Tokenizer
from leyden.train import run as train_run
from leyden.train import steps
from leyden.train.metrics import MetricsLog

SMALL_MODEL = {
    "preset": "tiny",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "head_dim": 16,
    "rotary_dim": 8,
}
VOWELS = """
class Vowels:
    def prompts(self):
        return [{"prompt": f"Is {number} so?"} for number in range(9)]

    def score(self, row, response):
        return sum(letter in "aeiou" for letter in response) / 16
"""
"""The source of an environment in which some completions have a higher reward than others."""
TIMING = {"time", "tokens_per_second", "rollout_tokens_per_second", "mfu"}


def metrics(directory: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMING} for record in records]


def assert_same_run(
    directory: Path, undisturbed: Path, final: tuple[str, ...] = ("model.safetensors", "config.json")
) -> None:
    assert metrics(directory) == metrics(undisturbed)
    for name in (*(f"final/{name}" for name in final), "eval.jsonl", "samples.jsonl", "recipe.toml"):
        assert (directory / name).read_bytes() == (undisturbed / name).read_bytes(), name


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    append = MetricsLog.append

    def append_and_act(log: MetricsLog, record: dict[str, Any]) -> None:
        append(log, record)
        if record["step"] == step:
            act()

    monkeypatch.setattr(MetricsLog, "append", append_and_act)


def steps_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step, and every measurement on held-out documents, seems to take one second."""
    for module in (steps, train_run):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=itertools.count().__next__))


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def on_build(build: Path, **stage: object) -> dict[str, Any]:
    """A recipe of one stage on a build."""
    stage = {"name": "one", "objective": "pretrain", "steps": 3, "seq_len": 64, "batch_tokens": 128, **stage}
    return {"model": SMALL_MODEL, "data": {"build": str(build)}, "train": {"dtype": "float32"}, "stage": [stage]}


def rl_recipe(place: Path, *, every_steps: int, **rl: Any) -> dict[str, Any]:
    """A step of fine-tuning and six of reinforcement learning in :data:`VOWELS`; its files go to ``place``."""
    Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270).save(place / "tokenizer")
    chats = [{"prompt": f"Is {number} so?", "completion": f"Yes, {number} is."} for number in range(20)]
    (place / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    (place / "own.py").write_text(VOWELS, encoding="utf-8")
    usual = {
        "environment": f"{place / 'own.py'}:Vowels",
        "max_tokens": 8,
        "updates": 2,
        "engine": {"max_sequences": 8, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001},
    }
    shape = {"name": "rl", "objective": "rl", "steps": 6, "seq_len": 96, "micro_batch_tokens": 288}
    return {
        "model": {**SMALL_MODEL, "max_position_embeddings": 512},
        "tokenizer": {"path": str(place / "tokenizer")},
        "data": {"chats": [str(place / "chats.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32", "checkpoint_steps": 2},
        "stage": [
            {"name": "sft", "objective": "sft", "steps": 1, "seq_len": 128, "batch_tokens": 256},
            {**shape, "rl": {**usual, **rl}},
        ],
        "evaluate": {"every_steps": every_steps, "prompts": ["Is it"], "sample_tokens": 2},
    }


def changed(recipe: dict[str, Any], stage: dict[str, Any] | None = None, **rl: Any) -> dict[str, Any]:
    """The same with other settings of its stage of reinforcement learning, and of its table ``rl``."""
    sft, of_rl = recipe["stage"]
    return {**recipe, "stage": [sft, {**of_rl, **(stage or {}), "rl": {**of_rl["rl"], **rl}}]}
