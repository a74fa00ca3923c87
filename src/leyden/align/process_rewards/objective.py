"""The objective of a process reward model: the score of a step says whether it is right.

The chance that a step is right is sigma of the number that the score head makes of the hidden state of its last token.
Its loss is the binary cross-entropy with the label, as of the models of Math-Shepherd (arXiv 2312.08935) and
Qwen2.5-Math-PRM (arXiv 2501.07301), which have two labels as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from leyden.core.transfers import sent
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.parallel.objective import Sums


def step_losses(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """-log sigma(score) of a step that is right, and -log sigma(-score) of another, in nats.

    Args:
        scores: any shape; differentiable.
        right: bool, of the same shape.
    """
    return -logsigmoid(torch.where(right, scores, -scores))


def marks_of(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where steps with a label end, and where those that are right do: bool, each of the shape of ``labels`` [1, T].

    Args:
        labels: of solutions, marked as :mod:`leyden.align.process_rewards.solutions` says: a label at the end of a
            step, and one behind it where the step is right.
    """
    marked = labels != IGNORE_INDEX
    none = torch.zeros_like(marked[:, :1])
    ends = marked & ~torch.cat([none, marked[:, :-1]], 1)
    return ends, ends & torch.cat([marked[:, 1:], none], 1)


class LabelledSteps:
    """The mean of :func:`step_losses` over the steps that have a label.

    Its metrics, each a mean over these steps: ``accuracy``, how often the score is on the right side of 0; ``right``,
    how many are; ``probability``, how probable the model says that is.
    """

    counts: str = "labelled_steps"
    metrics: Sequence[str] = ("accuracy", "right", "probability")

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        scores = model.scores(features.hidden)
        ends, right = (model.ranks.own(mark) for mark in marks_of(sent(batch.labels, scores.device)))
        # The scores of other tokens are not read, whatever they are.
        scores = scores.where(ends, 0.0)
        losses = step_losses(scores, right)
        given = scores.detach()
        values = {"accuracy": (given > 0) == right, "right": right, "probability": given.sigmoid()}
        return Sums((losses * ends).sum(), ends.sum(), {name: (value * ends).sum() for name, value in values.items()})
