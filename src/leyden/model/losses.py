"""From hidden states to the losses of their labels, without logits in between."""

from typing import Any

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model.config import ModelConfig
from leyden.model.float32 import Float32Module
from leyden.model.ranks import Ranks
from leyden.ops import linear_cross_entropy, linear_token_nll


class OutputProjection(nn.Linear):
    """From hidden states to the vocabulary, or straight to the losses.

    Attributes:
        softcap: of the logits; None for none (:func:`soft_capped`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.softcap = config.final_logit_softcapping

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] to logits [..., V]."""
        return soft_capped(super().forward(input), self.softcap)

    def token_nll(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`leyden.ops.linear_token_nll` of hidden [N, D] and labels [N], under logits over ``temperature``."""
        hidden, softcap = at_temperature(hidden, self.softcap, temperature)
        return linear_token_nll(hidden, self.weight, labels, softcap=softcap)

    def cross_entropy(
        self, hidden: torch.Tensor, labels: torch.Tensor, z_loss: float, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`leyden.ops.linear_cross_entropy` of hidden [N, D], labels [N] and weights [N]."""
        return linear_cross_entropy(hidden, self.weight, labels, z_loss, weights=weights, softcap=self.softcap)


def soft_capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """``softcap tanh(logits / softcap)`` in float32 or wider (Gemma 2, arXiv 2408.00118, section 2); as they are
    without a cap."""
    if softcap is None:
        return logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.tanh(logits.to(wide) / softcap) * softcap


def at_temperature(
    hidden: torch.Tensor, softcap: float | None, temperature: float
) -> tuple[torch.Tensor, float | None]:
    """Hidden states and the cap whose logits are those of the given ones, over ``temperature``.

    ``c tanh(x / c) / T`` is ``c' tanh(x' / c')`` with ``x' = x / T`` and ``c' = c / T``.
    """
    if temperature == 1:
        return hidden, softcap
    return hidden / temperature, None if softcap is None else softcap / temperature


class ScoreHead(Float32Module):
    """From a hidden state to one number, in float32, since bfloat16 would round different scores to one value."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, config.hidden_size, dtype=torch.float32))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to [...], float32 or wider."""
        return (hidden.to(self.weight.dtype) * self.weight[0]).sum(-1)


class TokenLossModel(nn.Module):
    """A model, or the last stage of one, whose hidden states have losses.

    Attributes:
        config: of the whole model.
        ranks: those that share a row with this one.
        lm_head: an :class:`OutputProjection`, or another module with its two methods; None where the hidden states go
            on to another stage.
        score: a :class:`ScoreHead`; None where the configuration has no ``score_head``, or another stage has it.
    """

    config: ModelConfig
    ranks: Ranks
    lm_head: Any
    score: ScoreHead | None

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """The score of each hidden state, differentiable.

        Args:
            hidden: [B, T', D], as ``features`` gave them.

        Returns:
            [B, T'] float32 or wider, of this rank's own tokens where ranks share the row.

        Raises:
            UserError: the model has no score head.
        """
        if self.score is None:
            raise UserError(
                'this model has no score head; take a reward model, or train one (objective = "reward", '
                "docs/alignment.md)."
            )
        return self.score(hidden)

    def token_nll(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The negative log-likelihood of each label, and the logsumexp of its logits; both are differentiable.

        Args:
            hidden: [B, T, D], as ``features`` gave them.
            labels: [B, T] int64 over the whole row, :data:`leyden.ops.IGNORE_INDEX` where there is no label.
            temperature: above 0, what the logits are divided by.

        Returns:
            ``nll`` in nats and ``log_z``, [B, T] each in float32 or wider, 0 without a label; of the tokens that no
            other rank counts (:meth:`Ranks.own`), where ranks share the row.
        """
        assert self.lm_head is not None, "the losses are with the last stage"
        nll, log_z = self.lm_head.token_nll(hidden.flatten(0, 1), self.ranks.cut(labels).flatten(), temperature)
        return nll.view(hidden.shape[:2]), log_z.view(hidden.shape[:2])

    def cross_entropy(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None = None,
        *,
        z_loss: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of ``weights * nll`` over a row, with the model's z-loss and without; cheaper than :meth:`token_nll`.

        Args:
            hidden, labels: as of :meth:`token_nll`.
            weights: [B, T] over the whole row, constants; None: 1 each.
            z_loss: coefficient in place of the configuration's.

        Returns:
            Scalars in nats, float32 or wider, of this rank's tokens where ranks share the row. The second is not
            differentiable.
        """
        assert self.lm_head is not None, "the losses are with the last stage"
        rows, labels = hidden.flatten(0, 1), self.ranks.cut(labels).flatten()
        own = None if weights is None else self.ranks.own(weights).flatten()
        return self.lm_head.cross_entropy(rows, labels, self.config.z_loss_coef if z_loss is None else z_loss, own)
