"""Pairs from graded responses: of each prompt the best and the worst by reward (arXiv 2501.08313, section 5)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.align.chats.chat import Message

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RewardedPairs:
    """Pairs, and what became of the prompts.

    Attributes:
        pairs: rows with ``prompt``, ``chosen``, ``rejected`` (lists of messages) and ``rewards`` (of both), as stages
            on preferences read them; in the order in which their prompts are met.
        num_prompts: how many different ones there are.
        num_alone: of them, how many have fewer than two responses with a reward.
        num_close: of the others, how many have no two whose rewards are far enough apart.
    """

    pairs: Sequence[dict[str, Any]]
    num_prompts: int
    num_alone: int
    num_close: int

    def __str__(self) -> str:
        return (
            f"{self.num_prompts:,} prompts: {len(self.pairs):,} pairs; {self.num_alone:,} have fewer than two "
            f"responses with a reward, and of {self.num_close:,} the rewards are too close"
        )


def best_and_worst(rows: Iterable[tuple[Row, float | None]], *, least_gap: float = 0.0) -> RewardedPairs:
    """Of each prompt, the response with the highest reward and the one with the lowest; of equal ones, the first.

    Args:
        rows: each with ``prompt`` (a text, or messages) and ``response`` (a text), and its reward; None: it has none.
            A response that is empty is left out.
        least_gap: the rewards of a pair differ by this at least, and always by something.
    """
    groups: dict[str, list[tuple[Row, float]]] = {}
    for row, reward in rows:
        group = groups.setdefault(json.dumps(row.get("prompt", ""), sort_keys=True), [])
        if reward is not None and row["response"].strip():
            group.append((row, reward))
    pairs, num_alone, num_close = [], 0, 0
    for group in groups.values():
        if len(group) < 2:
            num_alone += 1
            continue
        (best, high), (worst, low) = (choose(group, key=lambda graded: graded[1]) for choose in (max, min))
        if high <= low or high - low < least_gap or best["response"] == worst["response"]:
            num_close += 1
            continue
        pairs.append(
            {
                "prompt": _messages(best.get("prompt", "")),
                "chosen": [{"role": "assistant", "content": best["response"]}],
                "rejected": [{"role": "assistant", "content": worst["response"]}],
                "rewards": [high, low],
            }
        )
    return RewardedPairs(pairs, len(groups), num_alone, num_close)


def _messages(prompt: str | list[Message]) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
