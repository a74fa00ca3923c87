"""What a critic minimises: of each token that the policy drew, the error of the value that it gave it."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from leyden.align.policy.objective import COUNT, of_tokens
from leyden.align.policy.values import value_losses
from leyden.core.config import Config
from leyden.core.transfers import sent
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.parallel.objective import Sums

VALUE, RETURN = "value", "return"
"""Values of each token: what the critic said of it when it was drawn, and what it is to say."""


class CriticSettings(Config):
    """The critic of ``algorithm.baseline = "critic"``: the table ``[stage.rl.critic]``.

    It is a model of its own with a score head, whose number at the place of a token is the token's value.
    """

    model: str | None = None
    """What it begins as: a reward model, or any model with the same tokenizer: a run, a checkpoint, a directory or a
    hub id. A score head that it has not begins as zeros. None: as the policy at the beginning of the stage, with a head
    of zeros."""
    lr: float | None = Field(default=None, gt=0)
    """Its peak learning rate, with the schedule of the stage; None: that of the policy."""
    value_clip: float = Field(default=0.2, ge=0)
    """A value that has come nearer to its return by more than this learns no further from the same completions; 0: it
    learns on."""
    alone_steps: int = Field(default=0, ge=0)
    """Steps at the beginning of the stage in which it alone learns, and the policy stays as it is."""


class ValueLoss:
    """The mean of :func:`leyden.align.policy.values.value_losses` over the tokens of completions that have a reward.

    Its metric is ``value_clipped``, the share of tokens at which the clip has taken the gradient away.

    Args:
        clip: of the values; 0: none.
    """

    counts: str = "completion_tokens"
    metrics: Sequence[str] = ("value_clipped",)

    def __init__(self, clip: float) -> None:
        self._clip = clip

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`; a row is one of completions
        (:class:`leyden.align.policy.objective.CompletionRow`) with :data:`VALUE` and :data:`RETURN`.

        Raises:
            UserError: the model has no score head.
        """
        values = model.scores(features.hidden)
        counted = model.ranks.own(sent(batch.labels, values.device)) != IGNORE_INDEX
        counted &= of_tokens(model, batch, COUNT) > 0
        before, returns = (
            model.ranks.own(sent(batch.per_token[name], values.device)).to(values.dtype) for name in (VALUE, RETURN)
        )
        # What is said of other tokens is not read, whatever it is.
        values, before, returns = (x.where(counted, 0.0) for x in (values, before, returns))
        losses, clipped = value_losses(values, before, returns, self._clip)
        return Sums(losses.sum(), counted.sum(), {"value_clipped": (clipped & counted).sum()})
