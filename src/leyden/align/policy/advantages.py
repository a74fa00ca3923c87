"""Advantages: how much better each completion of a prompt is than the others of its group.

Everything here is NumPy in float64, on [prompts, group] arrays. A reward that could not be measured is NaN: it takes no
part in its group, and its advantage is 0. A group whose measured rewards are all equal, or that has fewer than two, has
no signal: its advantages are exactly 0.
"""

from dataclasses import dataclass

import numpy as np

from leyden.align.policy.algorithm import Algorithm, Baseline, Scale

EPSILON = 1e-4
"""Added to a standard deviation before a division by it, as TRL does; the papers print none."""


@dataclass(frozen=True, eq=False)
class Advantages:
    """The advantages of the completions of some prompts.

    Attributes:
        values: [prompts, group] float64; 0 where there is no signal or no reward.
        measured: [prompts, group] bool, where there is a reward.
        signal: [prompts] bool, whether two rewards of the group differ.
    """

    values: np.ndarray
    measured: np.ndarray
    signal: np.ndarray


def advantages(rewards: np.ndarray, algorithm: Algorithm) -> Advantages:
    """The advantages of completions, not yet balanced (:func:`balanced` needs their weights).

    Args:
        rewards: [prompts, group] float64, NaN where there is none.
        algorithm: its ``baseline`` and ``scale`` are read.
    """
    measured = np.isfinite(rewards)
    known = np.where(measured, rewards, 0.0)
    highest = np.where(measured, rewards, -np.inf).max(1)
    lowest = np.where(measured, rewards, np.inf).min(1)
    signal = highest > lowest
    count = measured.sum(1, keepdims=True)
    values = _centred(known, measured, count, algorithm.baseline) / _scale(known, measured, count, algorithm.scale)
    return Advantages(np.where(measured & signal[:, None], values, 0.0), measured, signal)


def _centred(known: np.ndarray, measured: np.ndarray, count: np.ndarray, baseline: Baseline) -> np.ndarray:
    """Rewards minus the mean of their group (``group_mean``), or of the others in it (``leave_one_out``)."""
    deviation = np.where(measured, known - known.sum(1, keepdims=True) / np.maximum(count, 1), 0.0)
    if baseline == "group_mean":
        return deviation
    # r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
    return deviation * (count / np.maximum(count - 1, 1))


def _scale(known: np.ndarray, measured: np.ndarray, count: np.ndarray, scale: Scale) -> np.ndarray | float:
    """What deviations are divided by: the sample standard deviation, of each group or of the step."""
    if scale == "none":
        return 1.0
    if scale == "batch":
        rewards = known[measured]
        return float(rewards.std(ddof=1)) + EPSILON if len(rewards) > 1 else 1.0
    deviation = np.where(measured, known - known.sum(1, keepdims=True) / np.maximum(count, 1), 0.0)
    return np.sqrt((deviation**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + EPSILON


def balanced(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Advantages of which the larger side is scaled down to the smaller one: those above 0, or those below.

    MiniMax-01 balances what good and bad examples contribute, and prints no formula for it (arXiv 2501.08313, section
    5). Ours: with ``P`` the sum of
    ``weight * advantage`` over the completions above 0, and ``N`` that of ``-weight * advantage`` over those below,
    advantages above 0 are multiplied by ``min(1, N / P)`` and those below by ``min(1, P / N)``. Nothing is ever made
    larger, and the weighted mean of the advantages becomes 0.

    Where every completion weighs alike, a baseline of the mean of the group gives that already, and nothing changes.
    Where every token does, long bad completions weigh more than short good ones (or the reverse): that is balanced.

    Args:
        values: [...] advantages.
        weights: [...] of each completion in the loss: its tokens times the weight of each.

    Returns:
        [...]; unchanged where one side is empty.
    """
    contributions = values * weights
    above, below = contributions[contributions > 0].sum(), -contributions[contributions < 0].sum()
    if not above or not below:
        return values
    return np.where(values > 0, values * min(1.0, below / above), values * min(1.0, above / below))
