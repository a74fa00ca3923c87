"""What a policy gradient minimises, of packed completions whose advantages are known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from leyden.align.policy.algorithm import Algorithm
from leyden.align.policy.divergence import divergence, whole_divergence
from leyden.align.policy.surrogate import surrogate
from leyden.core.transfers import sent
from leyden.model import Features, HybridLM
from leyden.model.losses import TokenLossModel
from leyden.ops import IGNORE_INDEX
from leyden.parallel.objective import Sums
from leyden.train import document_sums

DRAWN, REFERENCE = "drawn", "reference"
"""Values of each token: its log-probability when it was drawn, and under the reference model, in nats."""
EARLIER = "earlier"
"""Of each token, bool: whether earlier weights drew it than those that drew the rest (partial rollouts)."""
ADVANTAGE, LOSS_WEIGHT, COUNT = "advantage", "loss_weight", "count"
"""Values of each completion: its advantage, and what each of its tokens weighs in the loss and in the denominator. With
a critic, each token has an advantage of its own."""


class CompletionRow(Protocol):
    """A row of completions, each a document with its prompt, of which the completion alone has labels."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor
    per_token: Mapping[str, torch.Tensor]
    """[1, T]: :data:`DRAWN`, :data:`REFERENCE` where a divergence is estimated from the tokens that were drawn, and
    :data:`ADVANTAGE` where the algorithm has a critic."""
    per_document: Mapping[str, torch.Tensor]
    """[N]: :data:`ADVANTAGE` where there is no critic, :data:`LOSS_WEIGHT` and :data:`COUNT`."""


class PolicyGradient:
    """The surrogate loss of an algorithm, with the divergence from a reference model.

    Args:
        algorithm: the settings.
        temperature: of the drawing; the policy is the model with its logits divided by this.
        partial: rows say which tokens earlier weights drew (:data:`EARLIER`).
        reference: gives the model whose whole distributions a divergence is from, of those of
            :data:`leyden.align.policy.algorithm.WHOLE`; it reads every row whole. Not asked for other divergences.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        temperature: float = 1.0,
        *,
        partial: bool = False,
        reference: Callable[[], HybridLM] | None = None,
    ) -> None:
        self.algorithm, self._temperature, self._partial = algorithm, temperature, partial
        self._reference = reference
        self.counts = "completion_tokens" if algorithm.denominator == "tokens" else "completions"
        names = ("ratio", "off_policy", "clipped", "discarded", "entropy")
        self.metrics: Sequence[str] = (*names, *["earlier"] * partial, *["kl"] * bool(algorithm.kl_weight))

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`. Metrics, over the units of the denominator:

        - ``ratio``: its mean; ``off_policy``: the share of tokens whose ratio is not exactly 1, though no earlier
          weights drew them;
        - ``earlier``: of partial rollouts, the share of tokens that earlier weights drew; with the ratio of a sequence,
          of the tokens of such sequences. Their ratios are not 1, and are not to be;
        - ``clipped``, ``discarded``: shares of tokens (:class:`leyden.align.policy.surrogate.TokenLosses`);
        - ``entropy``: the mean of ``-log p`` of what was drawn, which estimates the entropy of the policy;
        - ``kl``: the divergence from the reference: the estimate k3, whichever estimate is minimised, or the whole one
          that is.
        """
        device = features.hidden.device
        labels = sent(batch.labels, device)
        log_prob = log_probs(model, features.hidden, labels, self._temperature)
        learned = model.ranks.own(labels) != IGNORE_INDEX
        drawn, *reference = (
            model.ranks.own(sent(batch.per_token[name], device)).to(log_prob.dtype)
            for name in ((DRAWN, REFERENCE) if self.algorithm.estimates else (DRAWN,))
        )
        weight, count = (of_tokens(model, batch, name).to(log_prob.dtype) for name in (LOSS_WEIGHT, COUNT))
        if self.algorithm.baseline == "critic":
            advantage = model.ranks.own(sent(batch.per_token[ADVANTAGE], device)).to(log_prob.dtype)
        else:
            advantage = of_tokens(model, batch, ADVANTAGE).to(log_prob.dtype)
        log_ratio = (log_prob - drawn).where(learned, 0.0)
        earlier = torch.zeros_like(learned)
        if self._partial:
            earlier = model.ranks.own(sent(batch.per_token[EARLIER], device)) & learned
        if self.algorithm.ratio == "sequence":
            log_ratio = _sequence_mean(model, log_ratio, labels, batch)
            if self._partial:
                earlier = _sequence_mean(model, earlier.to(log_ratio.dtype), labels, batch) > 0
        weight, count = (x.where(learned, 0.0) for x in (weight, count))
        found = surrogate(self.algorithm, log_ratio, log_prob, advantage)
        loss = (weight * found.loss).sum()
        metrics = {
            "ratio": found.ratio,
            "off_policy": (found.ratio != 1) & ~earlier,
            "clipped": found.clipped,
            "discarded": found.discarded,
            "entropy": -log_prob,
        }
        if self._partial:
            metrics["earlier"] = earlier
        if self.algorithm.kl_weight:
            if reference:
                away = divergence(self.algorithm.kl, log_prob, reference[0]).where(learned, 0.0)
                metrics["kl"] = divergence("k3", log_prob, reference[0]).where(learned, 0.0)
            else:
                away = metrics["kl"] = self._whole_divergence(model, features.hidden, learned, batch)
            if self.algorithm.kl_in == "loss":
                loss = loss + self.algorithm.kl_weight * (weight * away).sum()
        return Sums(loss, count.sum(), {name: (count * value).sum() for name, value in metrics.items()})

    def _whole_divergence(
        self, model: TokenLossModel, hidden: torch.Tensor, learned: torch.Tensor, batch: CompletionRow
    ) -> torch.Tensor:
        """[1, T'] of this rank's own tokens, 0 where nothing is learned."""
        assert self._reference is not None and model.lm_head is not None, "given where there is something to compare"
        reference = self._reference()
        with torch.no_grad():
            theirs = reference.features(sent(batch.tokens, hidden.device), cu_seqlens=batch.cu_seqlens).hidden
        found = whole_divergence(
            self.algorithm.kl,
            hidden[learned],
            model.lm_head,
            model.ranks.own(theirs)[learned],
            reference.lm_head,
            model.config.vocab_size,
            self._temperature,
        )
        return torch.zeros(learned.shape, dtype=found.dtype, device=found.device).masked_scatter(learned, found)


def log_probs(
    model: TokenLossModel, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """[1, T'] log-probabilities of labels [1, T], in nats, under logits divided by ``temperature``; 0 without a label.

    Args:
        model: whose output projection is taken.
        hidden: [1, T', D], this rank's own.
        labels: of the whole row.
        temperature: above 0.
    """
    nll, _ = model.token_nll(hidden, labels, temperature)
    return -nll


def of_tokens(model: TokenLossModel, batch: CompletionRow, name: str) -> torch.Tensor:
    """[1, T'], for each of this rank's own tokens the value of its completion."""
    return _repeated(model, sent(batch.per_document[name], model.lm_head.weight.device), batch)


def _repeated(model: TokenLossModel, values: torch.Tensor, batch: CompletionRow) -> torch.Tensor:
    """[N] values of documents to [1, T'] of this rank's own tokens."""
    lengths = sent(batch.cu_seqlens.diff().long(), values.device)
    return model.ranks.own(values.repeat_interleave(lengths, output_size=batch.tokens.shape[1])[None])


def _sequence_mean(
    model: TokenLossModel, log_ratio: torch.Tensor, labels: torch.Tensor, batch: CompletionRow
) -> torch.Tensor:
    """The mean log-ratio of each document in the place of each of its tokens."""
    learned = (model.ranks.own(labels) != IGNORE_INDEX).to(log_ratio.dtype)
    sums, counts = (document_sums(model, x, batch) for x in (log_ratio, learned))
    return _repeated(model, sums / counts.clamp_min(1), batch)
