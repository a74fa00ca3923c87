"""A critic beside the policy: what it says of drawn tokens, the advantages that follow, and its own learning.

It is a model of its own, with an optimizer of its own, and takes a step on the same completions behind each step of the
policy. What it says of a token is computed when the completions are drawn, by the same operations on the same rows as
in its update: at the first one no value differs from what it was, by a bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from leyden.align.policy.algorithm import Algorithm
from leyden.align.policy.critic import RETURN, VALUE, CriticSettings, ValueLoss
from leyden.align.policy.divergence import divergence
from leyden.align.policy.objective import ADVANTAGE, COUNT, DRAWN, REFERENCE
from leyden.align.policy.values import (
    drawn_tokens,
    explained_variance,
    generalised_advantages,
    token_rewards,
    whitened,
)
from leyden.align.rollouts.rows import PLACE, REWARD, kept_values, of_all_ranks
from leyden.align.rollouts.sequences import micro_batches_of, share_of
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.data import Batch
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.parallel.objective import Sums, sums_of_row
from leyden.train import LearningRate, TrainState, train_step
from leyden.train.metrics import finite

_log = logger(__name__)

Parts = Sequence[Sequence[Batch]]
"""The rows of each optimizer step that goes through a round's completions."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows with advantages.

    Attributes:
        parts: with :data:`VALUE`, :data:`RETURN` and :data:`ADVANTAGE` of each token.
        means: [rollouts], of each the mean advantage of its tokens; 0 where it has none.
        facts: for the line of metrics, over the tokens of completions with a reward: ``value_mean``, ``return_mean``,
            ``explained_variance``.
    """

    parts: list[list[Batch]]
    means: np.ndarray
    facts: dict[str, float | None]


class Critic:
    """What judges the completions of a policy, and learns from them.

    Args:
        state: its model, which has a score head, and its optimizer; with the ranks of the policy.
        settings: its own.
        algorithm: of the policy.
        learning_rate: its rate at a step of the stage, from 0.
        clip_norm: as of the policy.
        max_skipped_steps: the run stops when so many of its steps in a row are not finite.
    """

    def __init__(
        self,
        state: TrainState,
        settings: CriticSettings,
        algorithm: Algorithm,
        learning_rate: Callable[[int], float],
        *,
        clip_norm: float,
        max_skipped_steps: int,
    ) -> None:
        self.state = state
        self._objective, self._algorithm = ValueLoss(settings.value_clip), algorithm
        self._learning_rate, self._clip_norm, self._max_skipped = learning_rate, clip_norm, max_skipped_steps

    def judge(self, parts: Parts, at_once: int) -> Judged:
        """Rows with the critic's values and the advantages that follow; of several ranks, all call this.

        Args:
            parts: rows as :func:`leyden.align.rollouts.rows.pack` and ``scored`` make them of completions.
            at_once: how many go through the model at once, as in an update.
        """
        valued = [
            [row for some in micro_batches_of(part, at_once) for row in self._with_values(some)] for part in parts
        ]
        return with_advantages(valued, self._algorithm)

    def learn(self, rows: Sequence[Batch], stage_step: int) -> dict[str, Any]:
        """Take a step on the rows that the policy has learned from; of several ranks, each has its share.

        Args:
            rows: micro-batches.
            stage_step: of the stage, from 0.

        Returns:
            For the line of metrics: ``value_loss``, ``value_clipped``, ``critic_grad_norm``, ``critic_lr``.

        Raises:
            UserError: too many of its steps in a row were not finite.
        """
        rate = self._learning_rate(stage_step)
        result = train_step(self.state, rows, self._objective, lr=rate, clip_norm=self._clip_norm)
        if result.skipped and result.weight:
            _log.warning(
                "step %d: the loss of the critic or its gradient is not finite; its step is skipped", self.state.step
            )
            if self.state.skipped_in_a_row >= self._max_skipped:
                raise UserError(
                    f"{self.state.skipped_in_a_row} steps of the critic in a row were skipped, to step "
                    f"{self.state.step}, since its loss or gradient is not finite; lower rl.critic.lr from an earlier "
                    "step on (leyden run --from), or look at the rewards."
                )
        return {
            "value_loss": finite(result.loss),
            "value_clipped": finite(result.metrics["value_clipped"]),
            "critic_grad_norm": finite(result.grad_norm),
            "critic_lr": rate,
        }

    def _with_values(self, micro_batch: Sequence[Batch]) -> list[Batch]:
        ranks = self.state.rank_group
        ranks.at("the values of completions", self.state.step + 1)
        row, model = share_of(micro_batch, *ranks.share), self.state.model
        model.train()
        asked = _Values()
        with torch.enable_grad():  # the operations that have a gradient may have other roundings
            sums_of_row(asked, model, row)
        found = of_all_ranks(asked.found, len(micro_batch), self.state)
        return [
            replace(one, per_token={**one.per_token, VALUE: values[None]})
            for one, values in zip(micro_batch, found, strict=True)
        ]


def with_advantages(parts: Parts, algorithm: Algorithm) -> Judged:
    """What follows from the values of all tokens of a round.

    Args:
        parts: rows with :data:`VALUE` of each token, ``REWARD`` and ``COUNT`` of each completion and, where the
            divergence is taken from the rewards, ``DRAWN`` and ``REFERENCE``.
        algorithm: its ``gamma``, ``gae_lambda``, ``scale``, ``reward_weight`` and divergence are read.
    """
    rows = [row for part in parts for row in part]
    found = [_Tokens.of(row, algorithm) for row in rows]
    values, raw, counted = (np.concatenate([getattr(one, name) for one in found]) for name in _Tokens.OF_TOKENS)
    returns = raw + values
    advantages = whitened(raw, counted) if algorithm.scale == "batch" else raw
    advantages = np.where(counted, advantages, 0.0) * algorithm.reward_weight
    bounds = np.cumsum([len(one.places) for one in found])[:-1]
    split = zip(found, np.split(advantages, bounds), np.split(returns, bounds), strict=True)
    judged = iter([(row, *own) for row, own in zip(rows, split, strict=True)])
    made, means = [], []
    for part in parts:
        of_part = [next(judged) for _ in part]
        made.append([one.written(row, advantage, target) for row, one, advantage, target in of_part])
        means.append(_means([(row, one, advantage) for row, one, advantage, _ in of_part]))
    facts = {
        "value_mean": _mean(values[counted]),
        "return_mean": _mean(returns[counted]),
        "explained_variance": explained_variance(values[counted], returns[counted]),
    }
    return Judged(made, np.concatenate(means), facts)


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The drawn tokens of one row: [M] each, and [N+1] ``bounds`` of its documents among them."""

    places: np.ndarray
    bounds: np.ndarray
    values: np.ndarray
    advantages: np.ndarray
    counted: np.ndarray

    OF_TOKENS = ("values", "advantages", "counted")

    @classmethod
    def of(cls, row: Batch, algorithm: Algorithm) -> "_Tokens":
        places, bounds = drawn_tokens(row.labels[0].numpy(), row.cu_seqlens.numpy())

        def of_tokens(name: str) -> torch.Tensor:
            return row.per_token[name][0, torch.from_numpy(places)].double()

        penalties = None
        if algorithm.kl_weight and algorithm.kl_in == "reward":
            away = divergence(algorithm.kl, of_tokens(DRAWN), of_tokens(REFERENCE))
            penalties = algorithm.kl_weight * away.numpy()
        values = of_tokens(VALUE).numpy()
        advantages = generalised_advantages(
            token_rewards(row.per_document[REWARD].double().numpy(), bounds, penalties),
            values,
            bounds,
            gamma=algorithm.gamma,
            gae_lambda=algorithm.gae_lambda,
        )
        return cls(places, bounds, values, advantages, np.repeat(row.per_document[COUNT].numpy() > 0, np.diff(bounds)))

    def written(self, row: Batch, advantages: np.ndarray, returns: np.ndarray) -> Batch:
        """The row with both, 0 at other places, in the dtype of its values."""
        named = {}
        for name, values in ((ADVANTAGE, advantages), (RETURN, returns)):
            named[name] = torch.zeros_like(row.per_token[VALUE])
            named[name][0, torch.from_numpy(self.places)] = torch.from_numpy(values).to(named[name].dtype)
        return replace(row, per_token={**row.per_token, **named})


def _means(rows: Sequence[tuple[Batch, _Tokens, np.ndarray]]) -> np.ndarray:
    """[rollouts of a part] the mean advantage of each, in their order before they were packed."""
    found: dict[int, float] = {}
    for row, tokens, advantages in rows:
        assert row.groups is not None, "rollouts are in groups of one"
        for segment in torch.nonzero(row.groups >= 0).flatten().tolist():
            of_one = advantages[tokens.bounds[segment] : tokens.bounds[segment + 1]]
            found[int(row.per_document[PLACE][segment])] = _mean(of_one) or 0.0
    return np.array([found[place] for place in sorted(found)])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


class _Values:
    """An objective that keeps the value of every token that has a label and is this rank's own, and minimises nothing.

    Attributes:
        found: [1, T] on the host; 0 elsewhere.
    """

    counts: str = "tokens"
    metrics: Sequence[str] = ()

    def __init__(self) -> None:
        self.found = torch.empty(0)

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        self.found = kept_values(model, batch, model.scores(features.hidden).detach())
        return Sums(features.hidden.sum() * 0, torch.zeros((), device=features.hidden.device))


class AfterCritic(LearningRate):
    """The rate of a policy that waits for its critic: 0 for so many steps, and then the schedule over those left."""

    alone_steps: int

    def lr_at(self, step: int, total_steps: int) -> float:
        """The rate of ``step`` (from 0) of ``total_steps``."""
        if step < self.alone_steps:
            return 0.0
        return super().lr_at(step - self.alone_steps, total_steps - self.alone_steps)
