"""Means of scores with confidence intervals."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_Z95 = 1.959963984540054
"""Standard deviations that hold 95 % of a normal distribution."""
_RESAMPLES = 2000
_PLACES = 6
"""Decimals of the figures in a line."""


def mean_with_interval(scores: Sequence[float]) -> dict[str, Any]:
    """``value``, ``stderr``, ``interval`` (95 %) and ``n`` of scores.

    Where every score is 0 or 1 the interval is Wilson's, which is right for few scores and at both ends. Otherwise it
    is the percentile bootstrap's, from a fixed seed. A single score that is neither has no interval.

    Args:
        scores: at least one.
    """
    values = np.asarray(scores, np.float64)
    n = len(values)
    stderr = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    if np.isin(values, (0, 1)).all():
        interval = wilson(int(values.sum()), n)
    else:
        interval = _bootstrap(values) if n > 1 else None
    return {"value": _rounded(values.mean()), "stderr": _rounded(stderr), "interval": _pair(interval), "n": n}


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927), of ``hits`` among ``n``."""
    share, z2 = hits / n, _Z95 * _Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def by_axes(rows: Sequence[dict[str, Any]], axes: Sequence[str]) -> list[dict[str, Any]]:
    """The mean of ``score`` in each cell: one entry for each combination of the facts ``axes``, in order."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        cells.setdefault(tuple(row[axis] for axis in axes), []).append(row["score"])
    return [
        {**dict(zip(axes, key, strict=True)), **mean_with_interval(cells[key])} for key in sorted(cells, key=_sortable)
    ]


def _sortable(key: Iterable[Any]) -> list[tuple[bool, Any]]:
    return [(isinstance(part, str), part) for part in key]


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = np.array([generator.choice(values, len(values)).mean() for _ in range(_RESAMPLES)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def ratio_with_interval(numerators: np.ndarray, denominators: np.ndarray) -> dict[str, Any]:
    """``value``, ``stderr``, ``interval`` (95 %) and ``n`` of a ratio of two sums over independent parts.

    Both are the bootstrap's over the parts, from a fixed seed; a single part has neither.

    Args:
        numerators, denominators: [N], of each part.
    """
    n = len(numerators)
    value = float(numerators.sum() / denominators.sum())
    if n < 2:
        return {"value": _rounded(value), "stderr": None, "interval": None, "n": n}
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    ratios = (counts @ numerators) / (counts @ denominators)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return {
        "value": _rounded(value),
        "stderr": _rounded(ratios.std(ddof=1)),
        "interval": _pair((float(low), float(high))),
        "n": n,
    }


def normal_figures(value: float, stderr: float | None, n: int) -> dict[str, Any]:
    """``value``, ``stderr``, ``interval`` (95 %, normal) and ``n`` of a figure whose standard error is known.

    Args:
        value: the figure.
        stderr: its standard error; anything but a number where it is not known.
        n: how many items it is of.
    """
    known = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
    interval = None if known is None else (value - _Z95 * known, value + _Z95 * known)
    return {"value": _rounded(value), "stderr": _rounded(known), "interval": _pair(interval), "n": n}


def _pair(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(end) for end in interval]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _PLACES)


def normal_interval(value: float, residuals: np.ndarray, total: float) -> dict[str, Any]:
    """``stderr`` and ``interval`` (95 %, normal) of a ratio of two sums over independent parts.

    Args:
        value: the ratio of the sums.
        residuals: [N], of each part its numerator minus ``value`` times its denominator.
        total: the sum of the denominators.
    """
    n = len(residuals)
    if n < 2:
        return {"stderr": None, "interval": None}
    stderr = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total
    return {"stderr": _rounded(stderr), "interval": _pair((value - _Z95 * stderr, value + _Z95 * stderr))}
