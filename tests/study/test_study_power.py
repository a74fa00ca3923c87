"""Power analysis against textbook figures and an integral of its own."""

import math

import numpy as np
import pytest
from scipy import stats

from leyden.core.errors import UserError
from leyden.study.power import (
    Noise,
    measure_noise,
    minimum_detectable_effect,
    paired_items_needed,
    paired_minimum_effect,
    power_of,
    seeds_needed,
)


def test_paired_items_as_in_the_tables() -> None:
    """Cohen (1988), table 2.4.1, one-sided 0.05, power 0.80, matched pairs: d 0.2 needs 156, 0.5 needs 27, 0.8 needs
    12."""
    assert [paired_items_needed(d, 1.0) for d in (0.2, 0.5, 0.8)] == [156, 27, 12]
    assert paired_items_needed(1.0, 2.0) == 27


def test_the_minimum_effect_inverts_the_items() -> None:
    assert paired_minimum_effect(27, 1.0) < 0.5 < paired_minimum_effect(26, 1.0)
    # By hand, where t is nearly normal: (1.6449 + 0.8416) / sqrt(n).
    assert paired_minimum_effect(100_000, 3.0) == pytest.approx(3 * 2.48648 / math.sqrt(100_000), rel=1e-3)


def test_power_by_integration() -> None:
    """Of runs alone: the chance that a shifted normal over a chi exceeds the critical value, summed numerically."""
    noise, effect, seeds = Noise(run=0.01, rest=0.0), 0.2, 3
    df, shift = 2 * seeds - 2, effect / math.sqrt(2 * 0.01 / seeds)
    critical = stats.t.ppf(0.95, df)
    grid = np.linspace(1e-6, 60, 400_001)
    known = np.trapezoid(stats.chi2.pdf(grid, df) * stats.norm.sf(critical * np.sqrt(grid / df) - shift), grid)
    assert power_of(noise, effect, seeds, 50) == pytest.approx(known, abs=1e-6)


def test_known_effects_of_few_seeds() -> None:
    """In standard deviations of a run, one-sided: the two-sample t test's, by statsmodels' own solver."""
    from statsmodels.stats.power import TTestIndPower

    for seeds in (2, 3, 5, 10):
        known = TTestIndPower().solve_power(nobs1=seeds, alpha=0.05, power=0.8, alternative="larger")
        found = minimum_detectable_effect(Noise(run=1.0, rest=0.0), seeds, 1000)
        assert found == pytest.approx(float(np.squeeze(known)), rel=1e-6)


def test_seeds_needed_are_the_fewest() -> None:
    noise = Noise(run=0.02**2, rest=0.3**2, uneven=0.1, of_effect=0.5)
    found = seeds_needed(noise, 0.1, 200)
    assert power_of(noise, 0.1, found, 200) >= 0.8 > power_of(noise, 0.1, found - 1, 200)
    with pytest.raises(UserError, match="by 4 seeds on 200 items"):
        seeds_needed(noise, 0.001, 200, most=4)


def test_unevenness_falls_with_the_effect_and_not_beyond_the_pilot_s() -> None:
    noise = Noise(run=0.0, rest=0.0, uneven=4.0, of_effect=2.0)
    assert [noise.standard_error(effect, 3, 4) for effect in (0, 1, 2, 8)] == [0, 0.5, 1, 1]


def test_noise_is_measured() -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal(4000)
    uneven = 0.3 + 0.5 * rng.standard_normal(4000)
    runs = [0.2 * rng.standard_normal((400, 1)) for _ in range(2)]
    ours, theirs = (items + run + 0.7 * rng.standard_normal((400, 4000)) for run in runs)
    found = measure_noise({"a": ours + uneven}, {"a": theirs}, {"a": 1.0})
    assert found.run == pytest.approx(0.04, rel=0.15)
    assert found.rest == pytest.approx(0.49, rel=0.02)
    assert found.uneven == pytest.approx(0.25, rel=0.08)
    assert found.of_effect == pytest.approx(0.3, abs=0.05)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 seeds"):
        power_of(Noise(1.0, 1.0), 1.0, 1, 10)
    with pytest.raises(UserError, match="must be positive; given: 0"):
        seeds_needed(Noise(1.0, 1.0), 0.0, 10)
    with pytest.raises(UserError, match="must be positive"):
        paired_items_needed(1.0, 0.0)
    with pytest.raises(UserError, match="do not vary"):
        minimum_detectable_effect(Noise(0.0, 0.0), 3, 10)
