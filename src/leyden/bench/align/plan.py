"""What ``leyden bench align`` measures: chats, pairs and prompts, cut out of the standard library's source."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leyden.bench.cpu.plan import FULL as CPU
from leyden.bench.cpu.plan import QUICK as CPU_QUICK
from leyden.model import ModelConfig

Work = Literal["sft", "dpo", "grpo"]
WORKS: tuple[Work, ...] = ("sft", "dpo", "grpo")
_SAMPLE_BYTES = 2_000_000
_PROMPT = (40, 200)
"""The fewest and the most letters of a prompt."""


@dataclass(frozen=True)
class AlignPlan:
    """The work of one run.

    Attributes:
        model: the shape; RoPE turns whole heads, since transformers cannot turn half.
        rows: chats, pairs or prompts in a step, by work.
        answer: the fewest and the most letters of an answer.
        row_tokens: of one packed sequence of ours; the longest chat fits.
        group: completions of a prompt.
        new_tokens: of a completion, at most; initial weights end none before.
        steps: of a measured turn by work, behind one that is not measured.
        repeats: measured turns of each side.
        tried_steps: of a turn by which the other side's fastest variant is chosen.
        threads: of each side.
    """

    model: ModelConfig
    rows: dict[str, int]
    answer: tuple[int, int]
    row_tokens: int
    group: int
    new_tokens: int
    steps: dict[str, int]
    repeats: int
    tried_steps: int = 1
    threads: int = 2
    dtype: str = "float32"


FULL = AlignPlan(
    model=CPU.model,
    rows={"sft": 8, "dpo": 4, "grpo": 4},
    answer=(200, 1200),
    row_tokens=1024,
    group=8,
    new_tokens=64,
    steps={"sft": 2, "dpo": 2, "grpo": 1},
    repeats=2,
)
QUICK = AlignPlan(
    model=CPU_QUICK.model,
    rows={"sft": 4, "dpo": 2, "grpo": 2},
    answer=(20, 60),
    row_tokens=256,
    group=2,
    new_tokens=4,
    steps={"sft": 1, "dpo": 1, "grpo": 1},
    repeats=1,
)


def chats(documents: Sequence[str], plan: AlignPlan, seed: int = 0) -> list[dict[str, str]]:
    """Rows with ``prompt`` and ``completion``: pieces of text whose lengths vary as the plan says."""
    text, draws = "\n".join(documents)[:_SAMPLE_BYTES], random.Random(seed)
    return [
        {"prompt": _piece(text, draws, _PROMPT), "completion": _piece(text, draws, plan.answer)}
        for _ in range(_count("sft", plan))
    ]


def pairs(documents: Sequence[str], plan: AlignPlan, seed: int = 1) -> list[dict[str, str]]:
    """Rows with ``prompt``, ``chosen`` and ``rejected``."""
    text, draws = "\n".join(documents)[:_SAMPLE_BYTES], random.Random(seed)
    return [
        {"prompt": _piece(text, draws, _PROMPT), **{key: _piece(text, draws, plan.answer) for key in _ANSWERS}}
        for _ in range(_count("dpo", plan))
    ]


_ANSWERS = ("chosen", "rejected")


def prompts(documents: Sequence[str], plan: AlignPlan, seed: int = 2) -> list[dict[str, str]]:
    """Rows with ``prompt``."""
    text, draws = "\n".join(documents)[:_SAMPLE_BYTES], random.Random(seed)
    return [{"prompt": _piece(text, draws, _PROMPT)} for _ in range(_count("grpo", plan))]


def reward(response: str) -> float:
    """The share of spaces: any two responses differ in it, and it costs nothing."""
    return response.count(" ") / (1 + len(response))


def _count(work: Work, plan: AlignPlan) -> int:
    """Rows of a turn, the step that is not measured included."""
    return plan.rows[work] * (plan.steps[work] + 1)


def _piece(text: str, draws: random.Random, lengths: tuple[int, int]) -> str:
    size = draws.randint(*lengths)
    begin = draws.randrange(len(text) - size)
    return text[begin : begin + size].strip() or "pass"


@dataclass(frozen=True)
class Turn:
    """What one turn of a side took, its first step left out.

    Attributes:
        seconds: of a step, on average.
        learned_per_second: tokens of answers that were learned from, or pairs, or completions.
        rollout_tokens_per_second: that were drawn, while they were drawn; 0 where none are.
        loss: of the first step.
        peak_bytes: the largest resident memory of the process.
    """

    seconds: float
    learned_per_second: float
    rollout_tokens_per_second: float
    loss: float
    peak_bytes: int


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
