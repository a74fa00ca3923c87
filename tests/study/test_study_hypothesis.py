"""The tests of a hypothesis against scipy, statsmodels and brute force, and how often they are wrong."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttest_ind

from leyden.core.errors import UserError
from leyden.study.hypothesis import (
    bootstrap_interval,
    crossed_test,
    flip_items,
    items_test,
    permute_runs,
    residual_variance,
    runs_test,
)
from leyden.study.power import Noise, minimum_detectable_effect

ONE = {"a": 1.0}


def scores(rng: np.random.Generator, seeds: int, items: np.ndarray, run: float, rest: float) -> np.ndarray:
    """[S, I] with known variances."""
    return items + run * rng.standard_normal((seeds, 1)) + rest * rng.standard_normal((seeds, len(items)))


@pytest.fixture
def tables() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    items = rng.standard_normal(30)
    return {"a": scores(rng, 4, items, 0.2, 0.5) + 0.3}, {"a": scores(rng, 3, items, 0.2, 0.5)}


def test_the_items_test_is_the_paired_t_test(tables) -> None:
    ours, theirs = tables
    found = items_test(ours, theirs, ONE)
    known = stats.ttest_rel(ours["a"].mean(axis=0), theirs["a"].mean(axis=0), alternative="greater")
    assert (found.t, found.p, found.df) == pytest.approx((known.statistic, known.pvalue, 29))
    assert found.lower == pytest.approx(known.confidence_interval(0.95).low)


def test_the_runs_test_is_student_s(tables) -> None:
    ours, theirs = tables
    found = runs_test(ours, theirs, ONE)
    known = ttest_ind(ours["a"].mean(axis=1), theirs["a"].mean(axis=1), alternative="larger", usevar="pooled")
    assert (found.t, found.p, found.df) == pytest.approx(known)


def test_the_crossed_test_by_hand() -> None:
    """2 runs of 2 items each; every sum worked out on paper."""
    ours, theirs = {"a": np.array([[5.0, 9.0], [7.0, 7.0]])}, {"a": np.array([[1.0, 2.0], [2.0, 1.0]])}
    # Run means 7, 7 and 1.5, 1.5: no variance between runs. Items' differences: 6 - 1.5 = 4.5 and 8 - 1.5 = 6.5, of
    # variance 2, over 2 items 1. Noise: the residuals are (-1, 1, 1, -1) and (-.5, .5, .5, -.5), sums of squares 4 and
    # 1 on one degree of freedom, over 2 runs of 2 items 1 and 0.25, more than the items' 1: only runs count.
    with pytest.raises(UserError, match="do not vary"):
        crossed_test(ours, theirs, ONE)
    ours["a"] = np.array([[5.0, 9.0], [6.0, 14.0]])
    # Run means 7, 10 and 1.5, 1.5: pooled variance 4.5 / 2 on 2 df, twice over 2 runs: 2.25. Differences 5.5 - 1.5 = 4
    # and 11.5 - 1.5 = 10, variance 18, over 2 items 9. Residuals of ours: (1, -1, -1, 1), 4 over 4 is 1; theirs 0.25.
    found = crossed_test(ours, theirs, ONE)
    variance = 2.25 + 9 - 1.25
    assert found.effect == 7
    assert found.standard_error**2 == pytest.approx(variance)
    assert found.df == pytest.approx(variance**2 / (2.25**2 / 2 + 9**2 + 1 + 0.25**2))
    assert found.p == pytest.approx(stats.t.sf(7 / variance**0.5, found.df))


def test_the_variance_is_that_of_repeated_experiments() -> None:
    """What crossed_test estimates, against the variance of the effect over fresh experiments of two benchmarks."""
    rng = np.random.default_rng(0)
    weights, effects, estimates = {"a": 0.7, "b": 0.3}, [], []
    for _ in range(400):
        tables: list[dict[str, np.ndarray]] = [{}, {}]
        shared = [0.1 * rng.standard_normal((4, 1)) for _ in tables]
        for name, count in (("a", 12), ("b", 25)):
            uneven = 0.6 * rng.standard_normal(count)
            for table, runs, own in zip(tables, shared, (uneven, 0 * uneven), strict=True):
                table[name] = runs + own + 0.4 * rng.standard_normal((4, count))
        found = crossed_test(tables[0], tables[1], weights)
        effects.append(found.effect)
        estimates.append(found.standard_error**2)
    true = 2 * 0.01 / 4 + sum(w**2 * (0.36 + 2 * 0.16 / 4) / n for w, n in ((0.7, 12), (0.3, 25)))
    assert np.mean(estimates) == pytest.approx(true, rel=0.06)
    assert np.var(effects, ddof=1) == pytest.approx(true, rel=0.2)


def test_residual_variance_is_that_of_a_two_way_layout() -> None:
    from statsmodels.regression.linear_model import OLS

    table = np.random.default_rng(1).standard_normal((3, 5)).cumsum(axis=1)
    runs, items = np.indices(table.shape)
    design = np.column_stack(
        [np.ones(15), *((runs.ravel() == r) for r in (1, 2)), *((items.ravel() == i) for i in (1, 2, 3, 4))]
    ).astype(float)
    assert residual_variance(table) == pytest.approx(OLS(table.ravel(), design).fit().mse_resid)


def test_permuted_runs_by_brute_force(tables) -> None:
    ours, theirs = tables
    pooled = [*ours["a"].mean(axis=1), *theirs["a"].mean(axis=1)]
    observed = np.mean(pooled[:4]) - np.mean(pooled[4:])
    ways = [
        np.mean([pooled[i] for i in chosen]) - np.mean([pooled[i] for i in range(7) if i not in chosen])
        for chosen in itertools.combinations(range(7), 4)
    ]
    exact = np.mean([way >= observed - 1e-12 for way in ways])
    assert permute_runs(ours, theirs, ONE) == pytest.approx(exact)
    drawn = permute_runs(ours, theirs, ONE, max_permutations=30)
    assert drawn == pytest.approx(exact, abs=0.15)
    best = {"a": np.ones((3, 2)) + np.arange(3)[:, None]}, {"a": np.zeros((3, 2)) - np.arange(3)[:, None]}
    assert permute_runs(*best, ONE) == 1 / 20


def test_flipped_items_by_brute_force() -> None:
    ours, theirs = {"a": np.array([[3.0, 1.0, 2.0]])}, {"a": np.array([[0.0, 2.0, 1.0]])}
    differences = np.array([3.0, -1.0, 1.0])
    exact = np.mean([np.dot(signs, differences) >= 3 for signs in itertools.product([-1, 1], repeat=3)])
    assert flip_items(ours, theirs, ONE) == pytest.approx(exact, abs=0.02)


def test_the_bootstrap_covers_runs_and_items(tables) -> None:
    """As wide as the crossed test's interval or a little wider (it counts shared noise more than once), same seed same
    interval."""
    low, high = bootstrap_interval(*tables, ONE, confidence=0.9)
    found = crossed_test(*tables, ONE)
    assert low < found.effect < high
    spread = (high - low) / (2 * stats.norm.ppf(0.95))
    assert 0.7 < spread / found.standard_error < 1.6
    assert (low, high) == bootstrap_interval(*tables, ONE, confidence=0.9)


def false_positives(run: float, uneven: float, *, seeds: int = 3, count: int = 1000) -> dict[str, float]:
    """Shares of null experiments called significant; ``uneven`` items favour one variant or the other, at random."""
    rng, hits = np.random.default_rng(7), {"crossed": 0, "runs": 0, "items": 0}
    for _ in range(count):
        items = rng.standard_normal(40)
        ours = {"a": scores(rng, seeds, items + uneven * rng.standard_normal(40), run, 0.3)}
        theirs = {"a": scores(rng, seeds, items, run, 0.3)}
        for name, test in (("crossed", crossed_test), ("runs", runs_test), ("items", items_test)):
            hits[name] += test(ours, theirs, ONE).significant
    return {name: number / count for name, number in hits.items()}


def test_false_positives_where_runs_are_noisy() -> None:
    """At 5 % the crossed test is wrong in 5 % (three standard errors of 1000 are 2.1 %); over items alone in 30 %."""
    found = false_positives(run=0.15, uneven=0.0)
    assert 0.029 < found["crossed"] < 0.071
    assert 0.029 < found["runs"] < 0.071
    assert found["items"] > 0.2


def test_false_positives_where_items_are_uneven() -> None:
    """Items that favour either variant at random: a test of runs alone takes their luck for an effect."""
    found = false_positives(run=0.05, uneven=0.5)
    assert 0.029 < found["crossed"] < 0.071
    assert found["runs"] > 0.1


def test_power_at_the_minimum_detectable_effect() -> None:
    rng, noise = np.random.default_rng(5), Noise(run=0.05**2, rest=0.3**2)
    effect, count = minimum_detectable_effect(noise, 3, 40), 1200
    hits = 0
    for _ in range(count):
        items = rng.standard_normal(40)
        ours, theirs = scores(rng, 3, items + effect, 0.05, 0.3), scores(rng, 3, items, 0.05, 0.3)
        hits += crossed_test({"a": ours}, {"a": theirs}, ONE).significant
    assert hits / count == pytest.approx(0.8, abs=0.04)


def test_tables_that_are_refused(tables) -> None:
    ours, theirs = tables
    with pytest.raises(UserError, match=r"treatment: 1 run;.*at least 2 seeds"):
        crossed_test({"a": ours["a"][:1]}, theirs, ONE)
    with pytest.raises(UserError, match="30 items in the treatment, 29 in the baseline"):
        crossed_test(ours, {"a": theirs["a"][:, 1:]}, ONE)
    with pytest.raises(UserError, match="1 item; a test needs"):
        items_test({"a": ours["a"][:, :1]}, {"a": theirs["a"][:, :1]}, ONE)
    with pytest.raises(UserError, match="different numbers of runs"):
        runs_test(ours | {"b": ours["a"][:2]}, theirs, {"a": 0.5, "b": 0.5})
    with pytest.raises(UserError, match="missing or not finite"):
        crossed_test({"a": np.where(ours["a"] > 1, np.nan, ours["a"])}, theirs, ONE)
    with pytest.raises(UserError, match="copies of one another"):
        crossed_test({"a": np.ones((3, 4))}, {"a": np.ones((3, 4))}, ONE)
