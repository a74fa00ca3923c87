"""A process reward model that grades responses: the chance of each step to be right, as in training."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

from leyden.align.process_rewards.solutions import encode_steps, steps_of
from leyden.align.reward_models.scorer import Encoded, RewardModel, Row, check_grades, logistic
from leyden.align.rewards.reward import Reward
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.errors import UserError


class ProcessRewardModel(RewardModel):
    """A reward model whose scores are those of steps: the texts that blank lines part (or lines, where
    there are none), or ``steps`` of a row.

    The reward is the product of the steps' chances (arXiv 2305.20050; Qwen2.5-Math-PRM chooses by it, arXiv
    2501.07301), which is that of all to be right if none depended on another. The components are ``product``, ``least``
    (the chance of the worst step, by which Math-Shepherd chooses, arXiv 2312.08935), ``last`` and ``steps``, their
    number.
    """

    def _encode(self, row: Row) -> Encoded:
        prompt, steps = self._prompt(row), row.get("steps") or steps_of(row["response"])
        if not all(isinstance(step, str) and step.strip() for step in steps) or not steps:
            raise UserError("it has no steps, or one that says nothing")
        ids, ends = encode_steps(prompt, [step.strip() for step in steps], self._tokenizer)
        return self._fitting(ids, ends.tolist())

    def _record(self, scores: Sequence[float]) -> Reward:
        if not all(map(math.isfinite, scores)):
            return Reward(None, {"product": None}, "a score of the process reward model is no finite number")
        chances = [logistic(score) for score in scores]
        worst = min(range(len(chances)), key=chances.__getitem__)
        components = {
            "product": math.prod(chances),
            "least": chances[worst],
            "last": chances[-1],
            "steps": float(len(chances)),
        }
        reason = f"step {worst + 1} of {len(chances)} is the least likely to be right ({chances[worst]:.3g})"
        return Reward(components["product"], components, reason)


_LOADED: WeakValueDictionary[tuple[str, Path], RewardModel] = WeakValueDictionary()
"""The reward models that something in this process grades by."""


class LearnedGrader:
    """The reward model of a kind that a name means. Whether it can grade is checked at once; its weights are loaded
    when it first grades, and once for all that grade by it at a time.

    Args:
        kind: ``model`` or ``process``.
        name: a directory, a run, a checkpoint or a hub id.

    Raises:
        UserError: there is no such model, or it cannot grade.
    """

    def __init__(self, kind: Literal["model", "process"], name: str) -> None:
        self._kind, self._found = kind, StartingModel.find(name)
        check_grades(self._found.config, self._found.tokenizer, name)

    @property
    def identity(self) -> str:
        """A digest of its weights and its tokenizer."""
        return self._found.fingerprint

    def grade(self, row: Row) -> Reward:
        """See :meth:`leyden.align.reward_models.scorer.RewardModel.grade`."""
        return self._model.grade(row)

    def grade_all(self, rows: Sequence[Row]) -> Iterator[Reward | str]:
        """See :meth:`leyden.align.reward_models.scorer.RewardModel.grade_all`."""
        return self._model.grade_all(rows)

    @cached_property
    def _model(self) -> RewardModel:
        key = (self._kind, self._found.directory)
        model = _LOADED.get(key)
        if model is None:
            model = (ProcessRewardModel if self._kind == "process" else RewardModel).find(self._found.directory)
            _LOADED[key] = model
        return model
