"""Pairs from graded responses: of each prompt the best and the worst by reward (arXiv 2501.08313, section 5), or the
shortest right one and a longer one (long2short DPO of Kimi k1.5, arXiv 2501.12599, section 2.6).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.align.chats.chat import Message

Row = Mapping[str, Any]
_Graded = tuple[Row, float]


@dataclass(frozen=True)
class RewardedPairs:
    """Pairs, and what became of the prompts.

    Attributes:
        pairs: rows with ``prompt``, ``chosen``, ``rejected`` (lists of messages) and ``rewards`` (of both), as stages
            on preferences read them; in the order in which their prompts are met.
        num_prompts: how many different ones there are.
        num_alone: of them, how many have fewer than two responses with a reward.
        num_close: of the others, how many have no two that are far enough apart.
    """

    pairs: Sequence[dict[str, Any]]
    num_prompts: int
    num_alone: int
    num_close: int

    def __str__(self) -> str:
        return (
            f"{self.num_prompts:,} prompts: {len(self.pairs):,} pairs; {self.num_alone:,} have fewer than two "
            f"responses with a reward, and {self.num_close:,} no two that are far enough apart"
        )


def best_and_worst(rows: Iterable[tuple[Row, float | None]], *, least_gap: float = 0.0) -> RewardedPairs:
    """Of each prompt, the response with the highest reward and the one with the lowest; of equal ones, the first.

    Args:
        rows: each with ``prompt`` (a text, or messages) and ``response`` (a text), and its reward; None: it has none.
            A response that is empty is left out, and one whose ``finish`` is ``length`` (it was cut) is never the best.
            Where rows have a ``provenance``, the pair has both.
        least_gap: the rewards of a pair differ by this at least, and always by something.
    """

    def choose(group: Sequence[_Graded]) -> tuple[_Graded, _Graded] | None:
        best = max(filter(_ended, group), key=lambda graded: graded[1], default=None)
        worst = min(group, key=lambda graded: graded[1])
        far = best is not None and best[1] > worst[1] and best[1] - worst[1] >= least_gap
        return (best, worst) if best is not None and far and best[0]["response"] != worst[0]["response"] else None

    return _pairs(rows, choose)


def shortest_and_longer(
    rows: Iterable[tuple[Row, float | None]], *, least: float = 1.0, factor: float = 1.5
) -> RewardedPairs:
    """Of each prompt, the shortest response that is right, and the longest that is wrong or ``factor`` times as long.

    Args:
        rows: as of :func:`best_and_worst`.
        least: a response is right if its reward is this at least.
        factor: so much longer is a right response that is rejected; a wrong one is longer at all. Lengths are in
            letters, so that they do not depend on a tokenizer.
    """

    def choose(group: Sequence[_Graded]) -> tuple[_Graded, _Graded] | None:
        right = [graded for graded in group if graded[1] >= least and _ended(graded)]
        if not right:
            return None
        best = min(right, key=_length)
        longer = [
            graded
            for graded in group
            if _length(graded) > _length(best) and (graded[1] < least or _length(graded) >= factor * _length(best))
        ]
        return (best, max(longer, key=_length)) if longer else None

    return _pairs(rows, choose)


def _pairs(
    rows: Iterable[tuple[Row, float | None]], choose: Callable[[Sequence[_Graded]], tuple[_Graded, _Graded] | None]
) -> RewardedPairs:
    groups: dict[str, list[_Graded]] = {}
    for row, reward in rows:
        group = groups.setdefault(json.dumps(row.get("prompt", ""), sort_keys=True), [])
        if reward is not None and row["response"].strip():
            group.append((row, reward))
    pairs, num_alone, num_close = [], 0, 0
    for group in groups.values():
        if len(group) < 2:
            num_alone += 1
            continue
        chosen = choose(group)
        if chosen is None:
            num_close += 1
            continue
        pairs.append(_pair(*chosen))
    return RewardedPairs(pairs, len(groups), num_alone, num_close)


def _pair(best: _Graded, worst: _Graded) -> dict[str, Any]:
    made = {
        "prompt": _messages(best[0].get("prompt", "")),
        "chosen": [{"role": "assistant", "content": best[0]["response"]}],
        "rejected": [{"role": "assistant", "content": worst[0]["response"]}],
        "rewards": [best[1], worst[1]],
    }
    told = [row.get("provenance") for row, _ in (best, worst)]
    return made if told == [None, None] else {**made, "provenance": told}


def _ended(graded: _Graded) -> bool:
    return graded[0].get("finish") != "length"


def _length(graded: _Graded) -> int:
    return len(graded[0]["response"].strip())


def _messages(prompt: str | list[Message]) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
