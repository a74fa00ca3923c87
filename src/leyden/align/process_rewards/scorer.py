"""A process reward model that grades responses: the chance of each step to be right, as in training."""

import math
from collections.abc import Sequence
from typing import Literal

from leyden.align.process_rewards.solutions import encode_steps, steps_of
from leyden.align.reward_models.scorer import Encoded, RewardModel, Row, logistic
from leyden.align.rewards.reward import Reward
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


def find_grader(kind: Literal["model", "process"], name: str) -> RewardModel:
    """The reward model of a kind that ``name`` means.

    Raises:
        UserError: as of :meth:`leyden.align.reward_models.scorer.RewardModel.find`.
    """
    return (ProcessRewardModel if kind == "process" else RewardModel).find(name)
