"""How far two judges agree: on a scale, on categories, on an order; as numbers that JSON can hold."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_BINS = 5


def on_scale(judged: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    """Agreement on a scale.

    Args:
        judged: [D] float64, the judge's scores.
        scored: [D] float64, those to compare.

    Returns:
        Pearson's and Spearman's correlations (None where one side is constant), the mean absolute error, that of
        always giving the judge's median, and the calibration: for each fifth of ``scored``, the means of both.
    """
    stats = _stats()
    varied = len(judged) > 1 and np.ptp(judged) > 0 and np.ptp(scored) > 0
    parts = [part for part in np.array_split(np.argsort(scored, kind="stable"), _BINS) if len(part)]
    return {
        "documents": len(judged),
        "pearson": float(stats.pearsonr(judged, scored)[0]) if varied else None,
        "spearman": float(stats.spearmanr(judged, scored)[0]) if varied else None,
        "mean_absolute_error": _mean(np.abs(judged - scored)),
        "mean_absolute_error_of_median": _mean(np.abs(judged - np.median(judged))) if len(judged) else None,
        "calibration": [
            {"documents": len(part), "scored": _mean(scored[part]), "judged": _mean(judged[part])} for part in parts
        ],
    }


def on_categories(judged: Sequence[str], chosen: Sequence[str]) -> dict[str, Any]:
    """Agreement on categories.

    Returns:
        The share that agrees, that of always giving the judge's commonest category, Cohen's kappa (None where chance
        alone would agree on everything), and the confusion matrix: counts by the judge's category, then the other's.
    """
    names = sorted({*judged, *chosen})
    counts = np.zeros((len(names), len(names)), np.int64)
    for ours, theirs in zip(judged, chosen, strict=True):
        counts[names.index(ours), names.index(theirs)] += 1
    total = max(int(counts.sum()), 1)
    agreed, chance = np.trace(counts) / total, float(counts.sum(0) @ counts.sum(1)) / total**2
    return {
        "documents": int(counts.sum()),
        "accuracy": float(agreed),
        "accuracy_of_commonest": float(counts.sum(1).max() / total) if names else 0.0,
        "kappa": float((agreed - chance) / (1 - chance)) if chance < 1 else None,
        "confusion": {
            name: {other: int(n) for other, n in zip(names, row, strict=True) if n}
            for name, row in zip(names, counts, strict=True)
            if row.any()
        },
    }


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The probability that a positive scores above a negative, equal scores counting half; None without either."""
    if not len(positive) or not len(negative):
        return None
    ranks = _stats().rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _stats() -> Any:
    """``scipy.stats``, which is slow to import."""
    return importlib.import_module("scipy.stats")
