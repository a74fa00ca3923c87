"""Supervised fine-tuning: cross-entropy on what the assistant says."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from leyden.align.chats.batches import WEIGHT, Normalise
from leyden.core.transfers import sent
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.parallel.objective import Sums


class WeightedRow(Protocol):
    """A row of chats."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor
    per_document: Mapping[str, torch.Tensor]
    """``"weight"``: [N] float64, of each label of a segment."""


class Sft:
    """The weighted mean of the negative log-likelihood of the assistant's tokens, with the z-loss of the model.

    With ``normalise = "tokens"`` every token of all chats of a step counts alike, as in TRL and torchtune: long answers
    count more. With ``"chats"`` every chat does, by the mean over its tokens, as in OpenRLHF: tokens of long answers
    count less. The sums are divided once, by the weight of the whole step, however many micro-batches and ranks it has.

    Args:
        normalise: what counts alike; the batches have the weights.
    """

    metrics: Sequence[str] = ()

    def __init__(self, normalise: Normalise = "tokens") -> None:
        self.counts = "labels" if normalise == "tokens" else "chats"

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`. The loss that is logged is without the z-loss."""
        device = features.hidden.device
        dtype = torch.promote_types(features.hidden.dtype, torch.float32)
        labels, weight = sent(batch.labels, device), sent(token_weights(batch).to(dtype), device)
        loss, nll = model.cross_entropy(features.hidden, labels, weight)
        return Sums(loss, model.ranks.own(weight).sum(), {"loss": nll})


def token_weights(batch: WeightedRow) -> torch.Tensor:
    """[1, T] float64: the weight of each label; 0 where there is none."""
    weight = batch.per_document[WEIGHT].repeat_interleave(batch.cu_seqlens.diff().long())[None]
    return weight.where(batch.labels != IGNORE_INDEX, 0)
