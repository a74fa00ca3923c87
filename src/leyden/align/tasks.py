"""Small tasks with a verifier, made by arithmetic on a seed: something to align a small model on, with no download.

``chats = ["tasks:short"]`` in a recipe names their right answers, ``preferences = ["tasks:short"]`` pairs of a right
and a wrong one, and the environments here ask them of a policy: :class:`ShortTasks`, :class:`QuickTasks`,
:class:`LongTasks` and :class:`AllTasks`. What is held out is never trained on: a task belongs to one side by a hash of
its question.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from leyden.align.rewards.reward import Reward
from leyden.align.tools import calculate
from leyden.core.errors import UserError, suggest
from leyden.data.hold_out_rule import draw

PREFIX = "tasks:"
"""Begins a path that names tasks and no file."""
_WORDS = ["red", "blue", "green", "black", "white", "apple", "bread", "water", "stone", "river", "house", "tree"]
_HELD_OUT = 0.1
"""The share of tasks that is never trained on."""
_ROWS = {"short": 8000, "quick": 6000, "long": 600}
_FILLERS = (
    "The road goes on behind the hill.",
    "It was a quiet day in the village.",
    "Nobody asked what time it was.",
    "The train left a little later.",
)
_MOST_FILLERS = 45

Task = tuple[str, str, str]
"""A question, its answer, and a wrong one."""


def _say(rng: random.Random) -> Task:
    words = rng.sample(_WORDS, rng.randint(2, 3))
    return f"Say: {' '.join(words)}", " ".join(words), " ".join(reversed(words))


def _turn(rng: random.Random) -> Task:
    words = rng.sample(_WORDS, rng.randint(2, 3))
    return f"Turn around: {' '.join(words)}", " ".join(reversed(words)), " ".join(words)


def _last(rng: random.Random) -> Task:
    words = rng.sample(_WORDS, rng.randint(2, 4))
    return f"Which is last: {' '.join(words)}", words[-1], words[0]


def _sum(rng: random.Random) -> Task:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return f"Add: {a} {b}", str(a + b), str(a + b + rng.choice((-1, 1)))


def _keep(rng: random.Random) -> Task:
    kept, other = rng.sample(_WORDS, 2)
    before = rng.choices(_FILLERS, k=rng.randint(0, _MOST_FILLERS))
    behind = rng.choices(_FILLERS, k=rng.randint(1, _MOST_FILLERS))
    text = " ".join([*before, f"The word to keep is {kept}.", *behind])
    return f"{text} Which word was to be kept?", kept, other


_KINDS: Mapping[str, Mapping[str, Callable[[random.Random], Task]]] = {
    "short": {"say": _say, "turn": _turn, "last": _last, "sum": _sum},
    "quick": {"say": _say, "turn": _turn, "last": _last},
    "long": {"keep": _keep},
}


def task_rows(name: str, *, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """The tasks of a kind, each once and always the same: ``prompt``, ``task``, ``reference`` and ``completion`` (the
    right answer), and ``chosen`` and ``rejected``.

    Args:
        name: ``short``, ``quick`` or ``long``.
        held_out: those that are never trained on, in place of the others.

    Raises:
        UserError: there is no such kind.
    """
    if name not in _KINDS:
        raise UserError(
            f"{PREFIX}{name}: must be one of {', '.join(PREFIX + kind for kind in _KINDS)}{suggest(name, _KINDS)}"
        )
    rng, seen = random.Random(0), set[str]()
    makers = list(_KINDS[name].items())
    for number in range(_ROWS[name]):
        kind, make = makers[number % len(makers)]
        question, answer, wrong = make(rng)
        if question in seen or (draw(question.encode()) < _HELD_OUT) != held_out:
            continue
        seen.add(question)
        yield {
            "prompt": question,
            "task": kind,
            "reference": answer,
            "completion": answer,
            "chosen": answer,
            "rejected": wrong,
        }


class ShortTasks:
    """Four tasks on a few words or digits: repeat, turn around, name the last, add."""

    name = "short"

    def prompts(self) -> Iterator[Mapping[str, Any]]:
        """See :class:`leyden.align.rollouts.environment.Environment`."""
        return task_rows(self.name)

    def held_out(self) -> Iterator[Mapping[str, Any]]:
        """Those that are measured and never learned from."""
        return task_rows(self.name, held_out=True)

    def score(self, row: Mapping[str, Any], response: str, /) -> Reward:
        """1 for the right answer and nothing else; the task's name is a component, so that each is logged."""
        right = float(response.strip() == row["completion"])
        return Reward(right, {row["task"]: right}, "right" if right else f"the answer is {row['completion']}")


class QuickTasks(ShortTasks):
    """Those of the short tasks that take no more than looking up: repeat, turn around, name the last."""

    name = "quick"


class Calculations(ShortTasks):
    """Products of two numbers, with a calculator: an answer ``calc: 12 * 34`` is told the value, any other is the last.

    With ``rl.max_turns`` of 2 or more.
    """

    def prompts(self) -> Iterator[Mapping[str, Any]]:
        """See :class:`leyden.align.rollouts.environment.Environment`."""
        return (row for row in self._rows() if not row["held_out"])

    def held_out(self) -> Iterator[Mapping[str, Any]]:
        """Those that are measured and never learned from."""
        return (row for row in self._rows() if row["held_out"])

    def reply(self, row: Mapping[str, Any], answers: Sequence[str], /) -> str | None:
        """See :class:`leyden.align.rollouts.turns.Replying`."""
        head, colon, expression = answers[-1].partition("calc:")
        return calculate(expression) if colon and not head.strip() else None

    def _rows(self) -> Iterator[dict[str, Any]]:
        rng = random.Random(1)
        for a, b in dict.fromkeys((rng.randint(2, 99), rng.randint(2, 99)) for _ in range(2000)):
            question = f"What is {a} * {b}?"
            held_out = draw(question.encode()) < _HELD_OUT
            yield {"prompt": question, "task": "product", "completion": str(a * b), "held_out": held_out}


class LongTasks(ShortTasks):
    """A word that is to be kept, named somewhere in a long text and asked for at its end."""

    name = "long"


class AllTasks(ShortTasks):
    """The short tasks, and behind them the long one."""

    def prompts(self) -> Iterator[Mapping[str, Any]]:
        """See :class:`leyden.align.rollouts.environment.Environment`."""
        return chain(task_rows("short"), task_rows("long"))

    def held_out(self) -> Iterator[Mapping[str, Any]]:
        """Those that are measured and never learned from."""
        return chain(task_rows("short", held_out=True), task_rows("long", held_out=True))
