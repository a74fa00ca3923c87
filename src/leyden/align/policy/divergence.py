"""Estimates of the divergence of a policy from a reference, one a token, from log-probabilities of drawn tokens alone.

With ``d = log p - log p_ref`` of a token that the policy drew (Schulman, "Approximating KL divergence", 2020):

- ``k1 = d``: unbiased. Minimised as a loss it does nothing on average: the mean of its gradient is 0.
- ``k2 = d^2 / 2``: biased; the mean of its gradient is that of KL(p, p_ref).
- ``k3 = exp(-d) - 1 + d``: unbiased and never negative; the mean of its gradient is that of KL(p_ref, p). A token that
  the policy hardly knows has a gradient without bound.
- ``minimax = sg(p - p_ref) log p`` (MiniMax-01, arXiv 2501.08313, section 5), over the drawn tokens: the gradient
  of k3 times ``p``, which is bounded by 1. The mean of its gradient is that of ``|p - p_ref|^2 / 2`` over the
  vocabulary, a smaller number than the others, so that weights do not carry over. (Summed over the whole vocabulary
  instead, the same expression would have the gradient of KL(p_ref, p).)
"""

import torch

from leyden.align.policy.algorithm import Divergence

_LARGEST = 20.0
"""``-d`` beyond this is cut in k3, without a gradient; its exponential would leave float32's range."""


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
