"""The objective of a reward model: of two answers to a prompt, the preferred one is to have the higher score.

The score r of an answer is the number that the score head makes of the hidden state of the answer's last token. The
probability that one answer is preferred to another is that of Bradley and Terry (1952), sigma(r_chosen - r_rejected).
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from leyden.align.preference.objective import paired_values, wins
from leyden.core.config import Config
from leyden.core.transfers import sent
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.parallel.objective import Row, Sums
from leyden.train import document_sums


class RewardModelSettings(Config):
    """How a reward model learns from pairs; None: the default."""

    score_margin: float | None = Field(default=None, ge=0)
    """By how much the chosen answer's score is to exceed the rejected one's (arXiv 2307.09288, equation 2, where it is
    a function of the pair); None: 0."""
    center_weight: float | None = Field(default=None, ge=0)
    """The weight of the square of the sum of both scores, which keeps scores near 0 (arXiv 2312.09244): a
    difference says nothing of where they lie. None: 0.01."""


def pair_losses(scores: torch.Tensor, *, margin: float, center_weight: float) -> torch.Tensor:
    """-log sigma(r_chosen - r_rejected - margin) + center_weight (r_chosen + r_rejected)^2.

    Args:
        scores: [P, 2], of the chosen and of the rejected answer of each pair; differentiable.
        margin, center_weight: as of :class:`RewardModelSettings`.

    Returns:
        [P], in nats.
    """
    loss = -logsigmoid(scores[:, 0] - scores[:, 1] - margin)
    return loss + center_weight * scores.sum(1).square() if center_weight else loss


def document_scores(model: TokenLossModel, features: Features, batch: Row) -> torch.Tensor:
    """[N], the score of each document at its last token, the same on every rank of the row; differentiable.

    Raises:
        UserError: the model has no score head.
    """
    scores = model.scores(features.hidden)
    is_last = torch.zeros(batch.tokens.shape)
    is_last[0, batch.cu_seqlens[1:].long() - 1] = 1
    is_last = model.ranks.own(sent(is_last, scores.device))
    # Scores of other tokens are not read, whatever they are.
    return document_sums(model, scores.where(is_last > 0, 0.0), batch)


class ScoredPairs:
    """The mean of :func:`pair_losses` over pairs.

    Its metrics, each a mean over pairs:

    - ``accuracy``: how often the chosen answer has the higher score; equal scores count half.
    - ``margin``: the difference of the scores; ``chosen_score``, ``rejected_score``: the scores.

    Args:
        settings: of the stage.
    """

    counts: str = "pairs"
    metrics: Sequence[str] = ("accuracy", "margin", "chosen_score", "rejected_score")

    def __init__(self, settings: RewardModelSettings) -> None:
        self._margin = settings.score_margin or 0.0
        self._center_weight = 0.01 if settings.center_weight is None else settings.center_weight

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        scores = paired_values(document_scores(model, features, batch), batch)
        loss = pair_losses(scores, margin=self._margin, center_weight=self._center_weight)
        given = scores.detach()
        values = {
            "accuracy": wins(given),
            "margin": given[:, 0] - given[:, 1],
            "chosen_score": given[:, 0],
            "rejected_score": given[:, 1],
        }
        # Every rank of the row has all pairs, and they count once.
        once = model.ranks.once
        weight = once(torch.tensor(len(loss), device=loss.device))
        return Sums(once(loss.sum()), weight, {name: once(value.sum()) for name, value in values.items()})
