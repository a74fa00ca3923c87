"""Fits recover what was planted, refuse what they cannot know, and say where the data do not tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.study.fits import LEAST_POINTS, IsoFlopFit, fit_isoflops, fit_power_law

BUDGETS = 10.0 ** np.arange(15, 21)


def planted(alpha: float, beta: float, noise: float, seed: int = 0, factors: tuple[float, ...] = ()) -> IsoFlopFit:
    """Fit losses of ``L = 1.7 + 400 / N^alpha + 400 / D^beta`` with ``C = 6 N D``, sizes around the best of each."""
    generator = np.random.default_rng(seed)
    C, N, D, L = [], [], [], []
    for budget in BUDGETS:
        best = (alpha / beta) ** (1 / (alpha + beta)) * (budget / 6) ** (beta / (alpha + beta))
        for factor in factors or (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0):
            size = best * factor
            tokens = budget / (6 * size)
            loss = 1.7 + 400 / size**alpha + 400 / tokens**beta
            for column, value in zip(
                (C, N, D, L), (budget, size, tokens, loss * (1 + noise * generator.normal())), strict=True
            ):
                column.append(value)
    return fit_isoflops(C, N, D, L, resamples=200)


@pytest.mark.parametrize(("alpha", "beta"), [(0.34, 0.28), (0.34, 0.34), (0.25, 0.35)])
def test_planted_exponents_are_recovered_within_two_per_cent(alpha: float, beta: float) -> None:
    found = planted(alpha, beta, noise=2e-4)
    of_size, of_tokens = beta / (alpha + beta), alpha / (alpha + beta)
    assert found.parameters.exponent == pytest.approx(of_size, rel=0.02)
    assert found.tokens.exponent == pytest.approx(of_tokens, rel=0.02)
    assert found.untold == ""
    assert found.parameters.interval[0] < of_size < found.parameters.interval[1]
    assert len(found.minima) == len(BUDGETS)
    assert not found.left_out


def test_losses_that_noise_drowns_are_said_not_to_tell() -> None:
    """Sizes so near to each other that a twentieth of the loss in noise hides which is the best."""
    answers = []
    for seed in range(4):
        try:
            answers.append(planted(0.34, 0.28, noise=0.05, seed=seed, factors=(0.8, 0.9, 1.0, 1.1, 1.25)).untold)
        except UserError as error:
            answers.append(str(error))
    assert all(answers)


def test_a_budget_whose_best_size_is_not_among_its_sizes_is_left_out_by_name() -> None:
    with pytest.raises(UserError, match=r"at least 4 budgets.*1e\+15 FLOPs: the best size is below the smallest"):
        planted(0.34, 0.28, noise=0, factors=(8.0, 16.0, 32.0, 64.0))
    with pytest.raises(UserError, match="3 different sizes, and a parabola with something left over needs 4"):
        planted(0.34, 0.28, noise=0, factors=(0.5, 1.0, 2.0))


@given(
    exponent=st.floats(-2, 2).filter(lambda e: abs(e) > 0.05),
    scale=st.floats(1e-3, 1e6),
    seed=st.integers(0, 1000),
    count=st.integers(LEAST_POINTS, 12),
)
def test_a_power_law_is_found_again(exponent: float, scale: float, seed: int, count: int) -> None:
    x = np.geomspace(1, 1e4, count)
    exact = fit_power_law(x.tolist(), (scale * x**exponent).tolist())
    assert exact.exponent == pytest.approx(exponent, rel=1e-6)
    assert exact.at(50.0) == pytest.approx(scale * 50**exponent, rel=1e-6)
    noisy = scale * x**exponent * np.exp(0.01 * np.random.default_rng(seed).normal(size=count))
    low, high = fit_power_law(x.tolist(), noisy.tolist()).interval
    assert low < high


def test_intervals_hold_what_they_promise() -> None:
    """Of 400 noisy laws, 95 % of the intervals hold the exponent, to within four standard errors of that share."""
    generator, x = np.random.default_rng(0), np.geomspace(1, 100, 5)
    held = 0
    for _ in range(400):
        low, high = fit_power_law(x.tolist(), (x**0.5 * np.exp(0.05 * generator.normal(size=5))).tolist()).interval
        held += low < 0.5 < high
    assert abs(held / 400 - 0.95) < 4 * (0.95 * 0.05 / 400) ** 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_points_are_refused_with_the_number_needed(count: int) -> None:
    x = [1.0, 2.0, 3.0][:count]
    with pytest.raises(UserError, match=f"at least 4 different points; given {count}"):
        fit_power_law(x, x)
    with pytest.raises(UserError, match="at least 4 different points; given 1"):
        fit_power_law([2.0] * 9, [1.0] * 9)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_values_without_a_logarithm_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match="finite numbers above 0"):
        fit_power_law([1, 2, 3, 4], [1, 2, 3, bad])
