"""The divergence of a policy from a reference, one number a token.

*Estimates* need the log-probabilities of drawn tokens alone. With ``d = log p - log p_ref`` of a token that the policy
drew (Schulman, "Approximating KL divergence", 2020):

- ``k1 = d``: unbiased. Minimised as a loss it does nothing on average: the mean of its gradient is 0.
- ``k2 = d^2 / 2``: biased; the mean of its gradient is that of KL(p, p_ref).
- ``k3 = exp(-d) - 1 + d``: unbiased and never negative; the mean of its gradient is that of KL(p_ref, p). A token that
  the policy hardly knows has a gradient without bound.
- ``minimax = sg(p - p_ref) log p`` (MiniMax-01, arXiv 2501.08313, section 5), over the drawn tokens: the gradient
  of k3 times ``p``, which is bounded by 1. The mean of its gradient is that of ``|p - p_ref|^2 / 2`` over the
  vocabulary, a smaller number than the others, so that weights do not carry over. (Summed over the whole vocabulary
  instead, the same expression would have the gradient of KL(p_ref, p).)

*Whole* divergences are sums over the vocabulary, as on-policy distillation has them (GKD, arXiv 2306.13649):
``reverse`` is KL(p, p_ref), ``forward`` is KL(p_ref, p), and ``jensen_shannon`` is the mean of both from the middle,
``(p + p_ref) / 2``. A token has a gradient for every word, and none of an estimate's noise; both models compute all
logits for it.
"""

import math
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from leyden.align.policy.algorithm import Divergence

_LARGEST = 20.0
"""``-d`` beyond this is cut in k3, without a gradient; its exponential would leave float32's range."""
_CHUNK_LOGITS = 4 << 20
"""Logits of each of the two models that exist at once."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states [R, D] to logits [R, V]."""


def divergence(kind: Divergence, log_prob: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The term of each token.

    Args:
        kind: which estimate.
        log_prob: of each drawn token under the policy; differentiable.
        reference: the same under the reference, constants.
    """
    if kind == "minimax":
        return (log_prob.exp() - reference.exp()).detach() * log_prob
    difference = log_prob - reference
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    return (-difference).clamp(max=_LARGEST).expm1() + difference


def whole_divergence(
    kind: Divergence,
    hidden: torch.Tensor,
    head: Head,
    reference: torch.Tensor,
    reference_head: Head,
    vocab_size: int,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The divergence of each token's whole distribution, differentiable in ``hidden`` and in what ``head`` holds.

    The logits exist for some tokens at a time, and are formed once more in the backward.

    Args:
        kind: one of :data:`leyden.align.policy.algorithm.WHOLE`.
        hidden: [N, D], of the policy.
        head: its output projection.
        reference: [N, D'], of the reference; constants, as all of its model.
        reference_head: its output projection.
        vocab_size: V, by which the size of a chunk is found.
        temperature: by which the logits of both are divided.

    Returns:
        [N] nats, float32 or wider.
    """

    def of_rows(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        log_p = (head(hidden).to(wide) / temperature).log_softmax(-1)
        with torch.no_grad():
            log_q = (reference_head(reference).to(wide) / temperature).log_softmax(-1)
        if kind == "reverse":
            return _kl(log_p, log_q)
        if kind == "forward":
            return _kl(log_q, log_p)
        middle = torch.logaddexp(log_p, log_q) - math.log(2)
        return (_kl(log_p, middle) + _kl(log_q, middle)) / 2

    step = max(1, _CHUNK_LOGITS // vocab_size)
    found = [
        checkpoint(of_rows, *rows, use_reentrant=False)
        for rows in zip(hidden.split(step), reference.split(step), strict=True)
    ]
    return torch.cat([part for part in found if part is not None])


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
