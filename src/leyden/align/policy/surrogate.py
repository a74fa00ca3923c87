"""Surrogate losses of single tokens: what a policy gradient minimises of each token that was drawn."""

from dataclasses import dataclass

import torch

from leyden.align.policy.algorithm import Algorithm

LARGEST_LOG_RATIO = 20.0
"""A log-ratio beyond this is cut, without a gradient: its exponential would leave float32's range soon."""


@dataclass(frozen=True)
class TokenLosses:
    """The losses of some tokens, all tensors of one shape.

    Attributes:
        loss: differentiable.
        ratio: of the probability now to that under which the token was drawn; without a gradient.
        clipped: bool, where the clip has taken the gradient away, or bounded the weight.
        discarded: bool, where the token was dropped.
    """

    loss: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor
    discarded: torch.Tensor


def surrogate(
    algorithm: Algorithm, log_ratio: torch.Tensor, log_prob: torch.Tensor, advantage: torch.Tensor
) -> TokenLosses:
    """The loss of each token.

    With ratio ``r``, advantage ``A`` and the bounds ``low = 1 - clip_low`` and ``high = 1 + clip_high``:

    - ``clip``: ``-min(r A, clip(r, low, high) A)`` (PPO, arXiv 1707.06347, equation 7). ``high`` of its own is DAPO's
      clip-higher.
    - ``cispo``: ``-sg(clip(r, low, high)) A log p`` (MiniMax-M1, arXiv 2506.13585, equation 4). No token loses its
      gradient.

    Then tokens with ``A < 0`` and ``r > drop_above`` are dropped (MiniMax-01, arXiv 2501.08313, section 5): they
    have loss 0 and stay in every denominator. The gradient is that of the dual clip with ``c = drop_above``
    (arXiv 1912.09729), whose losses there are ``-c A``, a constant.

    Args:
        algorithm: the settings.
        log_ratio: ``log p`` now minus ``log p`` when the token was drawn; differentiable. Of a sequence, each of its
            tokens has the sequence's.
        log_prob: ``log p`` now; differentiable.
        advantage: of each token, a constant.
    """
    low = 1 - algorithm.clip_low
    high = 1 + algorithm.clip_high if algorithm.clip_high else None
    ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    bounded = ratio.clamp(low, high)
    if algorithm.surrogate == "cispo":
        loss = -bounded.detach() * advantage * log_prob
        clipped = bounded != ratio
    else:
        free, held = ratio * advantage, bounded * advantage
        loss = -torch.minimum(free, held)
        clipped = held < free
    discarded = torch.zeros_like(clipped)
    if algorithm.drop_above:
        discarded = (advantage < 0) & (ratio > algorithm.drop_above)
        loss = loss.where(~discarded, 0.0)
    return TokenLosses(loss, ratio.detach(), clipped & ~discarded, discarded)
