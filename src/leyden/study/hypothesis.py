"""One-sided tests of whether one data set gives a better model: H1: mu_treatment > mu_baseline.

Scores ``x[s, i]`` (run s of a variant, item i) vary with the run (initialisation and order of the data move all items
together), with the item, and by what is left::

    x[s, i] = mu + run[s] + item[i] + rest[s, i]

Items are paired: both variants answer the same ones. Runs are not: two runs share at most the number of their seed.
A paired t test over items alone takes ``run[s]`` for an effect of the data, and calls far too many null experiments
significant; :func:`crossed_test` therefore counts runs and items as samples of what they stand for. What is left
out: corrections for several comparisons, as an experiment has one treatment.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from leyden.core.errors import UserError
from leyden.study.metric import ScoreTable, benchmark, weighted_means

_BLOCK = 1 << 22
"""Numbers drawn at once, which bounds memory."""


@dataclass(frozen=True)
class TestResult:
    """What a one-sided test found.

    Attributes:
        effect: treatment minus baseline, the weighted mean over benchmarks of log acc_norm^2.
        standard_error: of the effect.
        df: degrees of freedom of ``t``.
        t: effect over standard error.
        p: of an effect as large under the null hypothesis.
        lower: the effect exceeds it with confidence ``1 - alpha``.
        alpha: the level asked for.
    """

    __test__ = False  # pytest would collect it by its name

    effect: float
    standard_error: float
    df: float
    t: float
    p: float
    lower: float
    alpha: float

    @property
    def significant(self) -> bool:
        """Whether the null hypothesis is rejected."""
        return self.p < self.alpha


@dataclass(frozen=True)
class _Term:
    """An estimated contribution to the variance of the effect, and how many degrees of freedom it rests on."""

    value: float
    df: float


def crossed_test(
    treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float], alpha: float = 0.05
) -> TestResult:
    """The test whose conclusion holds for other runs and other items alike: both are random.

    The variance of the effect is that between runs (of both variants), and that between items of how much the
    variant matters to them, which is what item differences vary by beyond the noise that runs put into them; the
    degrees of freedom are Satterthwaite's (1946). Where items differ by no more than that noise, only runs count.

    Args:
        treatment, baseline: [S, I] a benchmark, the same items in the same order; S may differ.
        weights: of the benchmarks, summing to 1.
        alpha: level of the test.

    Raises:
        UserError: one run of a variant, one item of a benchmark, or tables of different items.
    """
    check_tables(treatment, baseline, weights)
    effect = _effect(treatment, baseline, weights)
    runs = _between_runs(treatment, baseline, weights)
    items = [_between_items(treatment, baseline, name, weight) for name, weight in weights.items()]
    noise = [
        _noise(benchmark(scores, name), weight) for scores in (treatment, baseline) for name, weight in weights.items()
    ]
    interaction = _sum(items) - _sum(noise)
    terms = [runs, *items, *noise] if interaction > 0 else [runs]
    variance = runs.value + max(0.0, interaction)
    return _result(effect, variance, terms, alpha)


def items_test(
    treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float], alpha: float = 0.05
) -> TestResult:
    """The paired t test over items, each averaged over its runs: it speaks of these trained models alone.

    With one benchmark it is the textbook's. It needs no second run, and cannot know how much another run would differ.
    """
    check_tables(treatment, baseline, weights, runs=1)
    terms = [_between_items(treatment, baseline, name, weight) for name, weight in weights.items()]
    return _result(_effect(treatment, baseline, weights), _sum(terms), terms, alpha)


def runs_test(
    treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float], alpha: float = 0.05
) -> TestResult:
    """Student's t test of the runs' weighted means: it speaks of these items alone.

    The variants' variances are pooled, as three runs of each say too little of either alone: under the null hypothesis
    they are equal, and with as many runs of one variant as of the other the test hardly minds where they are not.
    """
    check_tables(treatment, baseline, weights)
    runs = _between_runs(treatment, baseline, weights)
    return _result(_effect(treatment, baseline, weights), runs.value, [runs], alpha)


TESTS = {"crossed": crossed_test, "runs": runs_test, "items": items_test}
"""What a plan may decide by."""


def permute_runs(
    treatment: ScoreTable,
    baseline: ScoreTable,
    weights: Mapping[str, float],
    *,
    max_permutations: int = 20_000,
    seed: int = 0,
) -> float:
    """The p value of the effect among all ways to hand out the variants' names to the runs.

    It assumes no distribution; with S runs of each variant it is never below ``1 / C(2 S, S)`` (1/20 for three).

    Args:
        max_permutations: where there are more ways, so many are drawn at random.
        seed: of the drawing.
    """
    check_tables(treatment, baseline, weights, runs=1)
    ours, theirs = weighted_means(treatment, weights), weighted_means(baseline, weights)
    pooled = np.concatenate([ours, theirs])
    exact = math.comb(len(pooled), len(ours)) <= max_permutations
    if exact:
        chosen = np.array(list(itertools.combinations(range(len(pooled)), len(ours))))
    else:
        draws = np.random.default_rng(seed).random((max_permutations, len(pooled)))
        chosen = np.argsort(draws, axis=1)[:, : len(ours)]
    sums = pooled[chosen].sum(axis=1)
    as_large = int(np.sum(sums >= ours.sum() - 1e-12 * np.abs(pooled).sum()))
    return as_large / len(chosen) if exact else (as_large + 1) / (len(chosen) + 1)


def flip_items(
    treatment: ScoreTable,
    baseline: ScoreTable,
    weights: Mapping[str, float],
    *,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """The p value of the effect among random flips of which variant each item's difference favours.

    The counterpart of :func:`items_test` that assumes no distribution; of these trained models alone.
    """
    check_tables(treatment, baseline, weights, runs=1)
    shares = [
        weight / d.size * d for name, weight in weights.items() for d in [_differences(treatment, baseline, name)]
    ]
    parts = np.concatenate(shares)
    rng = np.random.default_rng(seed)
    as_large, left = 0, num_permutations
    while left:
        rows = min(left, max(1, _BLOCK // len(parts)))
        signs = rng.integers(0, 2, (rows, len(parts)), dtype=np.int8) * 2 - 1
        as_large += int(np.sum(signs @ parts >= parts.sum() - 1e-12 * np.abs(parts).sum()))
        left -= rows
    return (as_large + 1) / (num_permutations + 1)


def bootstrap_interval(
    treatment: ScoreTable,
    baseline: ScoreTable,
    weights: Mapping[str, float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The two-sided percentile interval of the effect when runs and items are both drawn again.

    Drawing both counts the noise that they share more than once, so the interval is, if anything, too wide (Owen,
    2007, "The pigeonhole bootstrap").
    """
    check_tables(treatment, baseline, weights)
    rng = np.random.default_rng(seed)
    most = max(benchmark(baseline, name).shape[1] for name in weights)
    rows = max(1, _BLOCK // most)
    sizes = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
    effects = np.concatenate([_resampled(treatment, baseline, weights, size, rng) for size in sizes])
    low, high = np.quantile(effects, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled(
    treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float], count: int, rng: np.random.Generator
) -> np.ndarray:
    """[count], effects with runs and items drawn again; a run is drawn for all benchmarks at once."""
    effects = np.zeros(count)
    runs = [rng.multinomial(n, np.full(n, 1 / n), count) / n for n in (_runs(treatment), _runs(baseline))]
    for name, weight in weights.items():
        ours, theirs = benchmark(treatment, name), benchmark(baseline, name)
        num_items = ours.shape[1]
        counts = rng.multinomial(num_items, np.full(num_items, 1 / num_items), count) / num_items
        effects += weight * np.sum((runs[0] @ ours - runs[1] @ theirs) * counts, axis=1)
    return effects


def check_tables(treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float], *, runs: int = 2) -> None:
    """Refuse tables that a test would read wrongly.

    Raises:
        UserError: fewer than ``runs`` runs of a variant, fewer than 2 items, or tables of different items.
    """
    for label, scores in (("treatment", treatment), ("baseline", baseline)):
        counts = {benchmark(scores, name).shape[0] for name in weights}
        if len(counts) != 1:
            raise UserError(f"{label}: the benchmarks have different numbers of runs ({sorted(counts)}).")
        if min(counts) < runs:
            raise UserError(
                f"{label}: {min(counts)} run; how much another seed would change cannot be known from one. Give at "
                f"least {runs} seeds of each variant."
            )
    for name in weights:
        ours, theirs = benchmark(treatment, name).shape[1], benchmark(baseline, name).shape[1]
        if ours != theirs:
            raise UserError(
                f"benchmark '{name}': {ours} items in the treatment, {theirs} in the baseline; score both on the "
                "same items."
            )
        if ours < 2:
            raise UserError(f"benchmark '{name}' has {ours} item; a test needs at least 2.")


def residual_variance(scores: np.ndarray) -> float:
    """[S, I] scores: the variance of what neither run nor item explains, ``(S - 1)(I - 1)`` degrees of freedom."""
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    return float(np.sum(rest**2)) / ((scores.shape[0] - 1) * (scores.shape[1] - 1))


def _runs(scores: ScoreTable) -> int:
    return next(iter(scores.values())).shape[0]


def _effect(treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float]) -> float:
    return float(weighted_means(treatment, weights).mean() - weighted_means(baseline, weights).mean())


def _differences(treatment: ScoreTable, baseline: ScoreTable, name: str) -> np.ndarray:
    return benchmark(treatment, name).mean(axis=0) - benchmark(baseline, name).mean(axis=0)


def _between_runs(treatment: ScoreTable, baseline: ScoreTable, weights: Mapping[str, float]) -> _Term:
    arms = [weighted_means(scores, weights) for scores in (treatment, baseline)]
    df = sum(len(means) - 1 for means in arms)
    pooled = sum(float(means.var(ddof=1)) * (len(means) - 1) for means in arms) / df
    return _Term(pooled * sum(1 / len(means) for means in arms), df)


def _between_items(treatment: ScoreTable, baseline: ScoreTable, name: str, weight: float) -> _Term:
    differences = _differences(treatment, baseline, name)
    return _Term(weight**2 * float(differences.var(ddof=1)) / len(differences), len(differences) - 1)


def _noise(scores: np.ndarray, weight: float) -> _Term:
    """What runs put into the variance between the items of one variant."""
    num_runs, num_items = scores.shape
    value = weight**2 * residual_variance(scores) / (num_runs * num_items)
    return _Term(value, (num_runs - 1) * (num_items - 1))


def _sum(terms: list[_Term]) -> float:
    return sum(term.value for term in terms)


def _result(effect: float, variance: float, terms: list[_Term], alpha: float) -> TestResult:
    from scipy import stats

    if variance == 0:  # the tables agree in every run and item
        raise UserError("the scores do not vary at all between runs and items; are the runs copies of one another?")
    error = math.sqrt(variance)
    df = variance**2 / sum(term.value**2 / term.df for term in terms)
    t = effect / error
    return TestResult(
        effect=effect,
        standard_error=error,
        df=df,
        t=t,
        p=float(stats.t.sf(t, df)),
        lower=effect - float(stats.t.ppf(1 - alpha, df)) * error,
        alpha=alpha,
    )
