"""The critical batch as a power law of the loss: the paper's own, and intervals that cover."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.train.critical_batch import CriticalBatch, fit_critical_batch

PAPER = {2.22: 16e6, 1.98: 32e6, 1.77: 64e6, 1.58: 128e6}
"""Losses at which MiniMax-01 doubled its batch, in tokens (arXiv 2501.08313, section 4.3)."""


def test_the_papers_own_fit() -> None:
    """Its four points give an exponent of 6.121, and the batch at each to within 1 %."""
    law = fit_critical_batch(list(PAPER), list(PAPER.values()))
    assert law.exponent == pytest.approx(6.121, abs=0.001)
    for loss, batch in PAPER.items():
        assert law.at(loss) == pytest.approx(batch, rel=0.01)
        assert 16e6 * (2.22 / loss) ** 6.121 == pytest.approx(batch, rel=0.01)
    low, high = law.exponent_interval or (0, 0)
    assert 5.9 < low < 6.121 < high < 6.3


@given(exponent=st.floats(0.5, 9), scale=st.floats(1e2, 1e8), losses=st.lists(st.floats(1, 6), min_size=2, max_size=9))
def test_an_exact_law_is_found(exponent: float, scale: float, losses: list[float]) -> None:
    if max(losses) / min(losses) < 1.01:
        return
    law = fit_critical_batch(losses, [scale * loss**-exponent for loss in losses])
    assert law.exponent == pytest.approx(exponent, rel=1e-6)
    assert law.at(2.0) == pytest.approx(scale * 2.0**-exponent, rel=1e-6)


def test_intervals_cover_what_they_are_of() -> None:
    draws = np.random.default_rng(0)
    losses = np.linspace(1.5, 4, 12)
    covered = np.zeros(2)
    for _ in range(600):
        law = fit_critical_batch(losses.tolist(), (1e6 * losses**-5 * np.exp(draws.normal(0, 0.3, 12))).tolist())
        low, high = law.exponent_interval or (0, 0)
        at_low, at_high = law.interval_at(2.0) or (0, 0)
        covered += [low < 5 < high, at_low < 1e6 * 2.0**-5 < at_high]
    assert abs(covered / 600 - 0.95).max() < 0.03


def test_two_points_have_no_interval() -> None:
    law = fit_critical_batch([4.0, 2.0], [100.0, 800.0])
    assert law.exponent == pytest.approx(3)
    assert law.exponent_interval is None and law.interval_at(3.0) is None


@pytest.mark.parametrize(
    ("losses", "batches", "says"),
    [
        ([2.0], [1.0], "two different losses; given 1"),
        ([2.0, 2.0], [1.0, 2.0], "two different losses"),
        ([2.0, 1.0], [1.0, 0.0], "all of them above 0"),
        ([2.0, 1.0], [1.0], "as many losses as batches"),
    ],
)
def test_what_cannot_be_fitted(losses: list[float], batches: list[float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit_critical_batch(losses, batches)


def test_the_batch_doubles_where_the_law_has_doubled() -> None:
    """By the paper's law, in thousandths: from 16 on the batch is doubled at the losses that the paper names."""
    batch, doubled = CriticalBatch(), {}
    for number, loss in enumerate(np.arange(2.7, 1.5, -0.01).tolist()):
        before = batch.factor
        critical = batch.see(loss, 16e3 * (2.22 / loss) ** 6.121, 16e3 / 2 * before, doubles=True)
        assert (critical is None) == (loss > 2.7 / 1.1 + 1e-9), "the losses are too near to each other"
        if critical is not None:
            assert critical == pytest.approx(16e3 * (2.22 / loss) ** 6.121, rel=1e-6)
        if batch.factor != before:
            doubled[16 * batch.factor // 2] = loss
        if number == 70:
            other = CriticalBatch()
            other.load_state_dict(json.loads(json.dumps(batch.state_dict())))
            batch = other
    assert doubled == pytest.approx({16: 2.22, 32: 1.98, 64: 1.77, 128: 1.58}, abs=0.011)
    batch.enter_stage(1)
    assert batch.factor == 1


def test_nothing_is_decided_by_a_law_that_rises_or_is_not_asked() -> None:
    rising, asked_not = CriticalBatch(), CriticalBatch()
    for loss in np.linspace(4, 2, 30).tolist():
        assert rising.see(loss, 1e3 * loss, 1, doubles=True) is None
        asked_not.see(loss, 1e6 * loss**-3, 1, doubles=False)
    assert rising.factor == asked_not.factor == 1
