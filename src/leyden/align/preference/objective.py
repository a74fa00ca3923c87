"""The objective of a stage on pairs, whatever the loss."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from leyden.align.preference.losses import PreferenceSettings
from leyden.core.transfers import sent
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.parallel.objective import Sums
from leyden.train import document_sums

ANSWER_TOKENS, REFERENCE = "answer_tokens", "reference"
"""Of each answer, among :attr:`leyden.data.Batch.per_document`: how many tokens it has that are learned, and their
log-probability under the reference model."""


class PairedRow(Protocol):
    """A row of pairs: of each the chosen answer's document, and behind it the rejected one's."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor
    groups: torch.Tensor | None
    per_document: Mapping[str, torch.Tensor]
    """:data:`ANSWER_TOKENS` [N] float64 and, where the loss needs it, :data:`REFERENCE` [N] float64."""


class Preference:
    """The mean over pairs of a loss of :data:`~leyden.align.preference.losses.LOSSES`.

    Its metrics, each a mean over pairs:

    - ``accuracy``: how often the chosen answer has the larger reward, beta times its score. Before the first step no
      answer has moved from the reference: equal rewards count half, and rounding decides the others.
    - ``ranking_accuracy``: how often the chosen answer has the larger log-probability, divided by its length where the
      loss does that; the reference does not enter (arXiv 2405.19534).
    - ``margin``, ``chosen_reward``, ``rejected_reward``: the rewards, and their difference.
    - ``chosen_logp``, ``rejected_logp``: the log-probabilities themselves, summed over tokens, in nats. Both often fall
      while the margin grows.

    Args:
        settings: which loss.
    """

    counts: str = "pairs"
    metrics: Sequence[str] = (
        "accuracy",
        "ranking_accuracy",
        "margin",
        "chosen_reward",
        "rejected_reward",
        "chosen_logp",
        "rejected_logp",
    )

    def __init__(self, settings: PreferenceSettings) -> None:
        self._loss, self._settings = settings.of_pairs, settings.settings_of_loss
        self._nll_weight = settings.nll_weight or 0.0

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        device = features.hidden.device
        nll, _ = model.token_nll(features.hidden, sent(batch.labels, device))
        log_probs = paired_values(-document_sums(model, nll, batch), batch)
        lengths = paired_values(sent(batch.per_document[ANSWER_TOKENS], device), batch).to(log_probs.dtype)
        scores = log_probs
        if self._loss.needs_reference:
            scores = scores - paired_values(sent(batch.per_document[REFERENCE], device), batch).to(log_probs.dtype)
        ranks = log_probs.detach()
        if self._loss.by_length:
            scores, ranks = scores / lengths, ranks / lengths
        loss = self._loss.of_margin(scores[:, 0] - scores[:, 1], **self._settings)
        if self._nll_weight:
            loss = loss - self._nll_weight * log_probs[:, 0] / lengths[:, 0]
        rewards = self._settings["beta"] * scores.detach()
        values = {
            "accuracy": wins(rewards),
            "ranking_accuracy": wins(ranks),
            "margin": rewards[:, 0] - rewards[:, 1],
            "chosen_reward": rewards[:, 0],
            "rejected_reward": rewards[:, 1],
            "chosen_logp": log_probs[:, 0].detach(),
            "rejected_logp": log_probs[:, 1].detach(),
        }
        # Every rank of the row has all pairs, and they count once.
        once = model.ranks.once
        weight = once(torch.tensor(len(loss), device=device))
        return Sums(once(loss.sum()), weight, {name: once(value.sum()) for name, value in values.items()})


def paired_values(values: torch.Tensor, batch: PairedRow) -> torch.Tensor:
    """[N] values of documents to [P, 2]: those of the chosen and of the rejected answer of each pair."""
    assert batch.groups is not None, "pairs are groups"
    answers = sent((batch.groups >= 0).nonzero()[:, 0], values.device)
    return values[answers].view(-1, 2)


def wins(values: torch.Tensor) -> torch.Tensor:
    """[P, 2] to [P]: 1 where the first is the larger, 0.5 where both are equal."""
    return (values[:, 0] - values[:, 1]).sign() / 2 + 0.5
