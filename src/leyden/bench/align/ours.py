"""Our side of ``leyden bench align``: the command ``leyden run``, in a process of its own, as its users run it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w

from leyden.bench.align.plan import AlignPlan, Turn, Work, read_rows
from leyden.bench.memory import peak_bytes

_ENVIRONMENT = """
from leyden.bench.align.plan import read_rows, reward


class Letters:
    def prompts(self):
        return read_rows({path!r})

    def score(self, row, response):
        return reward(response)
"""


_COUNTED: Mapping[Work, str] = {"sft": "labels", "dpo": "pairs", "grpo": "drawn"}
"""What ``metrics.jsonl`` has of each step."""


class AlignOurs:
    """A stored model, trained by ``leyden run``.

    Args:
        directory: of the model and its tokenizer.
        data: the folder with a file of rows for each work.
        plan: how much of it.
    """

    def __init__(self, directory: str, data: str, plan: AlignPlan) -> None:
        self._directory, self._data, self._plan = directory, Path(data), plan

    def turn(self, work: Work, steps: int) -> Turn:
        """One step that does not count, and ``steps`` that do."""
        with tempfile.TemporaryDirectory() as parent:
            recipe = Path(parent, "recipe.toml")
            recipe.write_text(tomli_w.dumps(self._recipe(work, steps, Path(parent))), encoding="utf-8")
            run = Path(parent, "run")
            peak = _run(["run", str(recipe), "--dir", str(run)], self._plan.threads)
            lines = read_rows(run / "metrics.jsonl")
        ends = [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
        counted, seconds = lines[1:], ends[-1] - ends[0]
        rollout = [line["rollout_tokens_per_second"] for line in counted if "rollout_tokens_per_second" in line]
        return Turn(
            seconds=seconds / len(counted),
            learned_per_second=sum(line.get(_COUNTED[work], 0) for line in counted) / seconds,
            rollout_tokens_per_second=sum(rollout) / len(rollout) if rollout else 0.0,
            loss=lines[0]["loss"],
            peak_bytes=peak,
        )

    def _recipe(self, work: Work, steps: int, place: Path) -> dict[str, Any]:
        plan, path = self._plan, str(self._data / f"{work}.jsonl")
        stage: dict[str, Any] = {"name": work, "steps": steps + 1, "lr": 1e-6, "schedule": "constant"}
        data: dict[str, Any] = {}
        if work == "grpo":
            file = place / "letters.py"
            file.write_text(_ENVIRONMENT.format(path=path), encoding="utf-8")
            stage |= {"objective": "rl", "seq_len": plan.row_tokens, "micro_batch_tokens": 4 * plan.row_tokens}
            stage["rl"] = {
                "environment": f"{file}:Letters",
                "prompts_per_step": plan.rows[work],
                "group_size": plan.group,
                "max_tokens": plan.new_tokens,
                "held_out_prompts": 0,
                "algorithm": {"preset": "grpo"},
            }
        else:
            rows = plan.rows[work] // 2 * plan.row_tokens
            size = {"seq_len": plan.row_tokens, "batch_tokens": rows, "micro_batch_tokens": rows}
            key, objective = {"sft": ("chats", "sft"), "dpo": ("preferences", "preference")}[work]
            if work == "dpo":
                size = {"seq_len": 2 * plan.row_tokens, "batch_tokens": 2 * rows, "micro_batch_tokens": 2 * rows}
            stage |= {"objective": objective, **size}
            data = {key: [path], "held_out_fraction": 1e-9}
        return {
            "model": {"from": self._directory},
            "data": data,
            "train": {"dtype": plan.dtype, "checkpoint_steps": 10_000},
            "evaluate": {"every_steps": 0},
            "stage": [stage],
        }


def _run(arguments: list[str], threads: int) -> int:
    """Run a command of Leyden to its end; the largest resident memory of its process, in bytes.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "leyden", *arguments]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.02)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"leyden {arguments[0]} failed: {said.read().decode()[-2000:]}")
    return peak
