"""The record of what is good about one response, and how several components become one reward."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leyden.core.errors import UserError


@dataclass(frozen=True)
class Reward:
    """What is good about a response.

    Attributes:
        reward: from 0 to 1; None where it could not be measured, which is not the same as 0.
        components: what it is made of, by name; None for what could not be measured.
        reason: one line, for people.

    Raises:
        UserError: a number that is none (NaN) or has no end.
    """

    reward: float | None
    components: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        for name, value in {"reward": self.reward, **self.components}.items():
            if value is not None and not math.isfinite(value):
                raise UserError(f"'{name}' is {value}; a reward and its components are finite numbers, or none at all.")


@dataclass(frozen=True)
class Level:
    """A level of a hierarchy of rewards.

    Attributes:
        component: its name.
        least: what a response must have of it for the levels below to count.
    """

    component: str
    least: float = 1.0


def by_hierarchy(components: Mapping[str, float | None], levels: Sequence[Level], reason: str = "") -> Reward:
    """One reward of several components, of which the first matter most.

    With L levels, a response that reaches the least of the first l and not of the next has ``(l + v) / L``, where v is
    its component at that next level; one that reaches all has ``(L - 1 + v) / L`` with v of the last. So whoever fails
    a higher level has less than whoever reaches it, whatever else is good: a correct answer that does harm is worse
    than a wrong one that does not. Components are clipped to 0 to 1.

    Args:
        components: by name. One that is None leaves the reward None, if the levels above it are reached.
        levels: from the most important on.
        reason: of the record; left out, it names the level that was not reached.

    Raises:
        UserError: there are no levels, or one names a component that there is not.
    """
    missing = [level.component for level in levels if level.component not in components]
    if missing or not levels:
        raise UserError(
            f"a hierarchy needs levels, each of a component that there is ({', '.join(components)}); "
            f"{', '.join(missing) + ' is none' if missing else 'it has none'}."
        )
    for place, level in enumerate(levels):
        value = components[level.component]
        if value is None:
            return Reward(None, components, reason or f"{level.component} could not be measured")
        if value < level.least or place == len(levels) - 1:
            reached = (place + min(max(value, 0.0), 1.0)) / len(levels)
            said = (
                f"{level.component} is {value:g}, and {level.least:g} is asked" if value < level.least else "all levels"
            )
            return Reward(reached, components, reason or said)
    raise AssertionError("the last level returns")
