"""Several rewards of each response, as one by their hierarchy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leyden.align.process_rewards.scorer import LearnedGrader
from leyden.align.rewards.reward import Level, Reward, by_hierarchy
from leyden.align.rewards.rows import KINDS, RowSettings, grade_all
from leyden.align.sampling.asking import Response
from leyden.core.errors import UserError

LEARNED = ("model", "process")
"""The kinds of rewards that a model has learned, and grades by on this machine."""


@dataclass(frozen=True)
class Grading:
    """By what responses are graded.

    Attributes:
        levels: kinds of rewards from the most important on, each with what a response must have of it.
        rows: the settings of all kinds.
        models: the reward models of the kinds in :data:`LEARNED` that are among the levels.
    """

    levels: tuple[Level, ...]
    rows: RowSettings
    models: Mapping[str, LearnedGrader] = field(default_factory=dict)

    def of(self, kind: str) -> RowSettings:
        """The settings of one kind."""
        return replace(self.rows, kind=kind, model=self.models.get(kind))

    @property
    def enough(self) -> float:
        """The reward that is enough to be kept if no other is asked for: 1, that is all levels reached in full. A
        learned model never gives a full reward, so where one is among the levels, those above the first of them."""
        kinds = [level.component for level in self.levels]
        above = next((place for place, kind in enumerate(kinds) if kind in LEARNED), len(kinds))
        return above / len(kinds)


def levels_of(given: Sequence[str]) -> tuple[Level, ...]:
    """``("rules", "math:1", "judge:0.5")`` as levels; what must be reached is 1 unless it is said.

    Raises:
        UserError: no such kind, no such number, a kind twice, or none at all.
    """
    levels = []
    for one in given:
        kind, _, least = one.partition(":")
        if kind not in KINDS or kind in {level.component for level in levels}:
            raise UserError(f"--reward {one}: give each of {', '.join(KINDS)} once at most, the most important first.")
        try:
            levels.append(Level(kind, float(least or 1)))
        except ValueError:
            raise UserError(f"--reward {one}: what is asked of '{kind}' is a number from 0 to 1.") from None
        if not 0 <= levels[-1].least <= 1:
            raise UserError(f"--reward {one}: what is asked of '{kind}' is from 0 to 1.")
        if kind in LEARNED and not least and one != given[-1]:
            raise UserError(
                f"--reward {one}: no learned reward is 1; say what is asked of it before the next, {kind}:0.5."
            )
    if not levels:
        raise UserError(f"name what responses are graded by: --reward with one of {', '.join(KINDS)}.")
    return tuple(levels)


def grade_responses(responses: Sequence[Response], grading: Grading) -> list[Reward]:
    """The reward of each response; of a refused one there is none.

    Of one kind it is that reward. Of several it is their hierarchy, whose components are those of every kind under
    ``KIND.NAME``, beside the rewards of the kinds themselves.

    Raises:
        UserError: the judge cannot be reached, or it is code, and there is no sandbox.
    """
    asked = [place for place, one in enumerate(responses) if one.finish != "refused"]
    rows = [{**responses[place].prompt.row, "response": responses[place].text, "line": place + 1} for place in asked]
    kinds = [level.component for level in grading.levels]
    by_kind = {kind: list(grade_all(list(rows), grading.of(kind))) for kind in kinds}
    rewards = [Reward(None, {}, one.text) for one in responses]
    for number, place in enumerate(asked):
        rewards[place] = _as_one({kind: by_kind[kind][number] for kind in kinds}, grading.levels)
    return rewards


def _as_one(rewards: Mapping[str, Reward], levels: Sequence[Level]) -> Reward:
    if len(rewards) == 1:
        return next(iter(rewards.values()))
    components: dict[str, Any] = {kind: reward.reward for kind, reward in rewards.items()}
    for kind, reward in rewards.items():
        components |= {f"{kind}.{name}": value for name, value in reward.components.items()}
    return by_hierarchy(components, levels, "; ".join(f"{kind}: {reward.reason}" for kind, reward in rewards.items()))
