"""The metric of multiple-choice items: log acc_norm^2, which is continuous where accuracy is not.

``log acc_norm^2`` of an item is the logarithm of the share that the right choice has of the probability of all
choices, after each choice's probability was normalised by its length in bytes (arXiv 2501.08313, section 4.1.3). The
paper's typesetting leaves open how, so both readings are here and named:

- ``geometric``: ``p' = p ** (1 / bytes)``, so ``log p' = log p / bytes``, what the field calls acc_norm;
- ``arithmetic``: ``p' = p / bytes``, so ``log p' = log p - log bytes``.

Everything stays in log space: the probability of a sentence underflows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from leyden.core.errors import UserError

Reading = Literal["geometric", "arithmetic"]

ScoreTable = Mapping[str, np.ndarray]
"""Scores of one variant: benchmark to [S, I], one row a training run (seed), one column an item."""


def log_acc_norm2(
    log_likelihoods: np.ndarray, num_bytes: np.ndarray, answers: np.ndarray, reading: Reading
) -> np.ndarray:
    """The logarithm of the right choice's share of the byte-normalised probabilities.

    Args:
        log_likelihoods: [I, C] nats, the log-probability of each choice after its item's context; NaN where an item
            has fewer than C choices.
        num_bytes: [I, C], the UTF-8 bytes of each choice.
        answers: [I], the index of the right one.
        reading: of "byte-normalised".

    Returns:
        [I] float64, at most 0; chance is ``-log C``.

    Raises:
        UserError: a choice without bytes, or a right choice without a finite log-likelihood.
    """
    given = ~np.isnan(log_likelihoods)
    if np.any(num_bytes[given] < 1):
        raise UserError("a choice of an item has no bytes; give every choice some text.")
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = log_likelihoods / num_bytes if reading == "geometric" else log_likelihoods - np.log(num_bytes)
    normalised = np.where(given, normalised, -np.inf)
    right = normalised[np.arange(len(answers)), answers]
    if not np.all(np.isfinite(right)):
        item = int(np.flatnonzero(~np.isfinite(right))[0])
        raise UserError(
            f"the right choice of item {item} has no finite log-likelihood; the model's scores are damaged."
        )
    return right - np.logaddexp.reduce(normalised, axis=1)


def weighted_means(scores: ScoreTable, weights: Mapping[str, float]) -> np.ndarray:
    """[S], each run's mean over benchmarks, weighted, of its mean over items.

    Raises:
        UserError: a benchmark of ``weights`` has no scores.
    """
    return np.sum([weight * benchmark(scores, name).mean(axis=1) for name, weight in weights.items()], axis=0)


def benchmark(scores: ScoreTable, name: str) -> np.ndarray:
    """[S, I] of one benchmark.

    Raises:
        UserError: it is not there, or holds values that are not finite.
    """
    if name not in scores:
        raise UserError(f"benchmark '{name}' has no scores; there are: {', '.join(sorted(scores)) or 'none'}.")
    if not np.all(np.isfinite(scores[name])):
        raise UserError(f"benchmark '{name}' has scores that are missing or not finite; score every item again.")
    return scores[name]


def normalised_weights(names: Sequence[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """Weights of ``names`` that sum to 1: those given, or equal ones.

    Raises:
        UserError: a weight is missing, or not positive.
    """
    if given is None:
        return {name: 1 / len(names) for name in names}
    missing = [name for name in names if given.get(name, 0) <= 0]
    if missing:
        raise UserError(f"benchmarks need a positive weight each; without one: {', '.join(missing)}.")
    total = sum(given[name] for name in names)
    return {name: given[name] / total for name in names}
