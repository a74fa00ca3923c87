"""Where prompts and rewards come from: files with one of the rewards of ``leyden reward``, or a class of the user's."""

import importlib
import importlib.util
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from leyden.align.chats.read import read_rows
from leyden.align.process_rewards.scorer import LearnedGrader
from leyden.align.rewards.mathematics import MathReward
from leyden.align.rewards.reward import Reward
from leyden.align.rewards.rows import RowSettings, grader
from leyden.align.rewards.rules import read_rules
from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.rollouts.verifiers_taskset import TASKS, VerifiersTaskset
from leyden.core.errors import UserError
from leyden.core.sandbox.probe import try_to_escape
from leyden.data.documents import Reject
from leyden.data.readers.problem import Problem

Row = Mapping[str, Any]

_NEEDS = {
    "math": ("reference",),
    "exact": ("reference",),
    "code": ("tests",),
    "ifeval": ("instructions", "instruction_id_list"),
    "rules": (),
    "model": (),
    "process": (),
}
"""By the kind of a reward, the fields of which a row needs one."""


class Environment(Protocol):
    """What a policy is trained in. Of a class that a recipe names, an object is made without arguments.

    Both methods should follow from their arguments alone: a run that is resumed asks again. A third one,
    ``held_out()``, may give rows on which the reward is measured and which are never learned from. With a fourth one,
    ``reply(row, answers)``, rollouts have several turns (:mod:`leyden.align.rollouts.turns`).
    """

    def prompts(self) -> Iterable[Row]:
        """Rows, each with a ``prompt``: a text, or messages; and whatever ``score`` reads. Asked for once."""
        ...

    def score(self, row: Row, response: str, /) -> Reward | float | None:
        """How good a response to the prompt of ``row`` is; None where that cannot be said."""
        ...


class FileEnvironment:
    """Rows of files, graded by one of the rewards of ``leyden reward``.

    Args:
        settings: with ``prompts`` and ``reward``.

    Attributes:
        rejects: what of the files was set aside, once they were read.

    Raises:
        UserError: the reward is for code, and there is no sandbox.
    """

    def __init__(self, settings: RolloutSettings) -> None:
        assert settings.reward is not None, "settings without an environment have a reward"
        if settings.reward == "code":
            try_to_escape()
        self._held_out_paths = settings.held_out
        self._paths, self._needs, self._kind = settings.prompts, _NEEDS[settings.reward], settings.reward
        rules = read_rules() if settings.reward == "rules" else ()
        self._mathematics = MathReward()
        model = None
        if settings.reward in ("model", "process") and settings.reward_model is not None:
            model = LearnedGrader(settings.reward, settings.reward_model)
        self._grade = grader(RowSettings(settings.reward, rules=rules, model=model), self._mathematics)
        self.rejects: list[Reject] = []

    def prompts(self) -> Iterable[Row]:
        """See :class:`Environment`.

        Raises:
            UserError: there is no such file, or none with rows.
        """
        return read_rows(self._paths, self.rejects, self._row, "prompts")

    def held_out(self) -> Iterable[Row]:
        """The rows that are measured and not learned from; none where the stage names none."""
        return read_rows(self._held_out_paths, self.rejects, self._row, "prompts") if self._held_out_paths else ()

    def score(self, row: Row, response: str, /) -> Reward:
        """See :class:`Environment`.

        Raises:
            UserError: the row is broken.
        """
        return self._grade({**row, "response": response})

    def close(self) -> None:
        """End the process that compares answers."""
        self._mathematics.close()

    def _row(self, row: Row, id: str, source: str) -> Row:
        if self._needs and all(row.get(name) is None for name in self._needs):
            raise Problem(f"no {self._needs[0]}", f"reward '{self._kind}' needs it; columns: {', '.join(row)}"[:400])
        return row


def open_environment(settings: RolloutSettings) -> Environment:
    """The environment that a stage names.

    Raises:
        UserError: there is no such file, module or class, or it has not the two methods.
    """
    if settings.environment is None:
        return FileEnvironment(settings)
    place, colon, name = settings.environment.rpartition(":")
    if not colon or not place or not name:
        raise UserError(
            f'environment is "FILE.py:CLASS", "MODULE:CLASS" or "{TASKS}:TASKSET"; given "{settings.environment}".'
        )
    if place == TASKS:
        return VerifiersTaskset(name)
    found = getattr(_module(place), name, None)
    if not callable(found):
        raise UserError(f"environment: {place} has no class {name}.")
    made: Any = found()
    missing = [method for method in ("prompts", "score") if not callable(getattr(made, method, None))]
    if missing:
        raise UserError(f"environment: {name} in {place} has no method {' and no '.join(missing)}; it needs both.")
    return made


def _module(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None, "the name of a Python file"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except FileNotFoundError:
        raise UserError(f"environment: {place} does not exist; give the path of a Python file.") from None
    except ImportError as error:
        raise UserError(f"environment: {place} cannot be imported: {error}.") from None


def as_reward(given: Any) -> Reward:
    """What ``score`` returned as a record; one that is no finite number is no reward, and the reason says so."""
    if isinstance(given, Reward):
        return given
    if given is None:
        return Reward(None, {}, "score gave none")
    if isinstance(given, Real) and math.isfinite(given):
        return Reward(float(given))
    return Reward(None, {}, f"score gave {given!r:.80}, which is no finite number")
