"""What is minimised: an objective turns a batch into sums, and the step divides them once.

Sums, never means: k micro-batches of unequal length on any number of ranks then weigh every label alike, which means
of means do not.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from leyden.core.transfers import sent
from leyden.model import Features, HybridLM
from leyden.ops import IGNORE_INDEX


@dataclass(frozen=True)
class LossSums:
    """What one micro-batch contributes to a step; every field is a sum, so contributions add.

    Attributes:
        loss: scalar to backpropagate, everything that is minimised, summed over the valid labels.
        nll: scalar, the negative log-likelihood alone, in nats, summed over the valid labels.
        num_labels: int64 scalar, how many labels are valid.
        num_tokens: int64 scalar, how many positions were computed, with a label or without.
        load: [layers with experts, E] float32, each expert's share of the assignments, times ``num_labels``.
        dropped: scalar float32, the share of assignments that capacity dropped, times ``num_labels``.
    """

    loss: torch.Tensor
    nll: torch.Tensor
    num_labels: torch.Tensor
    num_tokens: torch.Tensor
    load: torch.Tensor
    dropped: torch.Tensor


class Objective(Protocol):
    """Anything that a step can minimise. The batch is whatever the objective's iterator yields."""

    def __call__(self, model: Any, batch: Any, /) -> LossSums: ...


class PackedBatch(Protocol):
    """Documents packed in one row."""

    @property
    def tokens(self) -> torch.Tensor:
        """[1, T] int64."""
        ...

    @property
    def labels(self) -> torch.Tensor:
        """[1, T] int64, the target of each position, or ``IGNORE_INDEX``."""
        ...

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """[N+1] int32 on the CPU, where each document begins, and the end."""
        ...


class Pretrain:
    """Next-token cross-entropy with the z-loss and the routers' losses of the model's configuration."""

    def __call__(self, model: HybridLM, batch: PackedBatch, /) -> LossSums:
        """The sums of one packed row; of this rank's tokens, where ranks share it."""
        features = model.features(sent(batch.tokens, model.lm_head.weight.device), cu_seqlens=batch.cu_seqlens)
        return self.of_features(model, features, batch)

    def nothing(self, model: HybridLM) -> LossSums:
        """The sums of no tokens at all: what a rank contributes whose part of ``model`` ends before the loss."""
        config = model.config
        shape = (config.num_hidden_layers, config.num_local_experts) if config.num_local_experts else (0, 0)
        zero = torch.zeros((), device=next(model.parameters()).device)
        return LossSums(zero, zero, zero.long(), zero.long(), zero.expand(shape), zero)

    def of_features(self, model: HybridLM, features: Features, batch: PackedBatch) -> LossSums:
        """The sums of what the layers made of a row."""
        labels = sent(batch.labels, features.hidden.device)
        loss, nll = model.cross_entropy(features.hidden, labels)
        own = model.ranks.own(labels)
        num_labels, num_tokens = (own != IGNORE_INDEX).sum(), torch.full((), own.numel(), device=own.device)
        if not model.config.num_local_experts:
            nothing = torch.zeros((), device=own.device)
            return LossSums(loss, nll, num_labels, num_tokens, nothing.expand(0, 0), nothing)
        routers = model.router_losses(features)
        row_labels = model.ranks.sum(num_labels)
        return LossSums(
            loss=loss + routers.loss * row_labels,  # a mean over the tokens of the micro-batch, a label
            nll=nll,
            num_labels=num_labels,
            num_tokens=num_tokens,
            load=routers.load * row_labels,
            dropped=routers.dropped * row_labels,
        )
