"""Objectives, and what they are written with; what an objective is, :mod:`leyden.parallel.objective` says."""

from collections.abc import Sequence

import torch

from leyden.core.transfers import sent
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.parallel.objective import Row, Sums


class Pretrain:
    """Next-token cross-entropy with the z-loss of the model's configuration; the weight is the number of labels."""

    counts: str = "labels"
    metrics: Sequence[str] = ()

    def sums(self, model: TokenLossModel, features: Features, batch: Row, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`. The loss that is logged is without the z-loss."""
        labels = sent(batch.labels, features.hidden.device)
        loss, nll = model.cross_entropy(features.hidden, labels)
        return Sums(loss, (model.ranks.own(labels) != IGNORE_INDEX).sum(), {"loss": nll})


def document_sums(model: TokenLossModel, values: torch.Tensor, batch: Row) -> torch.Tensor:
    """The sum of each document's values, over all ranks that share the row; differentiable.

    Args:
        model: whose ranks these are.
        values: [1, T'], of this rank's own tokens, as ``model.token_nll`` gives them.
        batch: the row.

    Returns:
        [N], one sum for each segment of ``batch.cu_seqlens``, the same on every rank of the row. What is computed from
        it alone goes through ``model.ranks.once``, so that it counts once.
    """
    lengths = sent(batch.cu_seqlens.diff().long(), values.device)
    document = torch.arange(len(lengths), device=values.device)
    document = model.ranks.own(document.repeat_interleave(lengths, output_size=batch.tokens.shape[1])[None])
    return model.ranks.row_sum(values.new_zeros(len(lengths)).index_add(0, document[0], values[0]))
