"""Null experiments: the false-positive rate of a test where there is no difference.

Two ways, told apart in the result. *Real*: many runs on the same data, which differ in their seed alone, are split at
random into a treatment and a baseline again and again. The splits share runs, so the rate is less sure than so many
independent experiments would make it: its standard error is a jackknife over the runs. *Simulated*: scores with the
variances of those runs, drawn from normal distributions, every experiment anew; with the minimum detectable effect
added, they measure the power.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import progress
from leyden.study.hypothesis import TESTS, permute_runs, residual_variance
from leyden.study.metric import Reading, ScoreTable, benchmark, weighted_means
from leyden.study.plan import StudyPlan, read_plan
from leyden.study.power import Noise, minimum_detectable_effect
from leyden.study.study import Run, Study

_FIRST_SEED = 2000
"""Of the null runs; the pilot's and the test's are others."""


@dataclass(frozen=True)
class Rate:
    """A measured share of experiments.

    Attributes:
        value: the share.
        standard_error: of it; None where too few runs are left without one to say.
        experiments: how many were tested.
    """

    value: float
    standard_error: float | None
    experiments: int


@dataclass(frozen=True)
class NullResult:
    """What null experiments showed, by test.

    Attributes:
        alpha: what the rates should be.
        num_runs, num_seeds, num_items: real runs, runs of each variant in an experiment, items of all benchmarks.
        real: rates over random splits of real runs; ``permutation`` beside the tests of a plan.
        simulated: rates over simulated experiments.
        power: shares of simulated experiments with an effect of ``effect`` that were found.
        effect: the minimum detectable effect by the noise of the null runs.
        noise: that noise.
    """

    alpha: float
    num_runs: int
    num_seeds: int
    num_items: int
    real: dict[str, Rate]
    simulated: dict[str, Rate]
    power: dict[str, Rate]
    effect: float
    noise: Noise


def run_null(directory: Path, *, num_runs: int, num_splits: int = 2000, num_simulated: int = 4000) -> NullResult:
    """Train ``num_runs`` baseline models and measure the false-positive rate; writes ``null.json``.

    Raises:
        UserError: there is no plan, or fewer runs than two variants of an experiment need.
        Interrupted: Ctrl-C; finished runs are kept.
    """
    study = Study(directory)
    plan = read_plan(study)
    num_seeds = len(plan.seeds["baseline"])
    if num_runs < 2 * num_seeds:
        raise UserError(
            f"{num_runs} null runs do not make an experiment of {num_seeds} runs each side; give at least "
            f"{2 * num_seeds}."
        )
    runs = [Run("null", "baseline", _FIRST_SEED + index) for index in range(num_runs)]
    study.carry_out(runs, "null runs", plan.fingerprint)
    reading: Reading = study.experiment.reading
    scores = study.scores(runs, reading, plan.fingerprint)
    result = measure_null(scores, plan, num_splits=num_splits, num_simulated=num_simulated)
    with atomic_file(directory / "null.json") as part:
        part.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    return result


def measure_null(
    scores: ScoreTable, plan: StudyPlan, *, num_splits: int, num_simulated: int, seed: int = 0
) -> NullResult:
    """The false-positive rates of ``scores`` [R, I] a benchmark, of runs that differ in their seed alone."""
    num_seeds = len(plan.seeds["baseline"])
    noise = null_noise(scores, plan.weights)
    num_items = sum(benchmark(scores, name).shape[1] for name in plan.weights)
    effect = minimum_detectable_effect(noise, num_seeds, num_items, alpha=plan.alpha, power=plan.power)
    simulated = _Simulated(scores, plan.weights)
    with progress("null experiments", num_splits + 2 * num_simulated, "experiments") as bar:
        return NullResult(
            alpha=plan.alpha,
            num_runs=_num_runs(scores),
            num_seeds=num_seeds,
            num_items=num_items,
            real=split_rates(scores, plan.weights, num_seeds, plan.alpha, num_splits, seed, bar.advance),
            simulated=simulated.rates(num_seeds, 0.0, plan.alpha, num_simulated, seed, bar.advance),
            power=simulated.rates(num_seeds, effect, plan.alpha, num_simulated, seed, bar.advance),
            effect=effect,
            noise=noise,
        )


def split_rates(
    scores: ScoreTable,
    weights: Mapping[str, float],
    num_seeds: int,
    alpha: float,
    num_splits: int,
    seed: int,
    tell: Callable[[float], None],
) -> dict[str, Rate]:
    """How often each test is significant over random splits of the runs into two groups of ``num_seeds``."""
    rng, num_runs = np.random.default_rng(seed), _num_runs(scores)
    hits = {name: np.zeros(num_splits, bool) for name in [*TESTS, "permutation"]}
    used = np.zeros((num_splits, num_runs), bool)
    for split in range(num_splits):
        order = rng.permutation(num_runs)[: 2 * num_seeds]
        used[split, order] = True
        groups = [{name: table[part] for name, table in scores.items()} for part in np.split(order, 2)]
        for name, test in TESTS.items():
            hits[name][split] = test(groups[0], groups[1], weights, alpha).significant
        hits["permutation"][split] = permute_runs(groups[0], groups[1], weights) <= alpha
        tell(1)
    return {name: Rate(float(h.mean()), _jackknife(h, used), num_splits) for name, h in hits.items()}


def null_noise(scores: ScoreTable, weights: Mapping[str, float]) -> Noise:
    """The noise of runs on the same data; no effect, so no spread of it over items."""
    num_items = sum(benchmark(scores, name).shape[1] for name in weights)
    left = sum(
        w**2 * residual_variance(benchmark(scores, name)) / benchmark(scores, name).shape[1]
        for name, w in weights.items()
    )
    return Noise(run=max(0.0, float(weighted_means(scores, weights).var(ddof=1)) - left), rest=left * num_items)


class _Simulated:
    """Normal scores with the variances of real runs: of the run, one draw for all benchmarks, and of the rest."""

    def __init__(self, scores: ScoreTable, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._run_sd = null_noise(scores, weights).run ** 0.5
        self._items = {name: benchmark(scores, name).mean(axis=0) for name in weights}
        # Items differ in how noisy they are; each keeps its own variance.
        self._rest_sd = {}
        for name in weights:
            table = benchmark(scores, name)
            rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            shares = rest.var(axis=0) / rest.var()
            self._rest_sd[name] = np.sqrt(shares * residual_variance(table))

    def rates(
        self, num_seeds: int, effect: float, alpha: float, count: int, seed: int, tell: Callable[[float], None]
    ) -> dict[str, Rate]:
        """How often each test finds ``effect`` in ``count`` experiments."""
        rng, hits = np.random.default_rng([seed, count, int(effect > 0)]), dict.fromkeys(TESTS, 0)
        for _ in range(count):
            treatment, baseline = self.draw(rng, num_seeds, effect), self.draw(rng, num_seeds, 0.0)
            for name, test in TESTS.items():
                hits[name] += test(treatment, baseline, self._weights, alpha).significant
            tell(1)
        return {name: _rate(number, count) for name, number in hits.items()}

    def draw(self, rng: np.random.Generator, num_seeds: int, effect: float) -> dict[str, np.ndarray]:
        """[S, I] a benchmark, every score raised by ``effect``."""
        runs = self._run_sd * rng.standard_normal((num_seeds, 1)) + effect
        return {
            name: runs + items + self._rest_sd[name] * rng.standard_normal((num_seeds, len(items)))
            for name, items in self._items.items()
        }


def _num_runs(scores: ScoreTable) -> int:
    return next(iter(scores.values())).shape[0]


def _rate(hits: int, count: int) -> Rate:
    share = hits / count
    return Rate(share, (share * (1 - share) / count) ** 0.5, count)


def _jackknife(hits: np.ndarray, used: np.ndarray) -> float | None:
    """Standard error of ``hits.mean()`` from leaving out each run in turn: splits that use it do not count."""
    without = [hits[~used[:, run]] for run in range(used.shape[1])]
    means = np.array([kept.mean() for kept in without if len(kept)])
    if len(means) < 2:
        return None
    return float(np.sqrt((len(means) - 1) * np.mean((means - means.mean()) ** 2)))
