"""The critical batch as a power law of the loss: the paper's own, and intervals that cover."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_run
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.train import LearningRate, MasterAdamW, Pretrain, TrainState, fit, read_metrics
from leyden.train.critical_batch import CriticalBatch, fit_critical_batch
from leyden.train.noise_scale import NoiseSample

PAPER = {2.22: 16e6, 1.98: 32e6, 1.77: 64e6, 1.58: 128e6}
"""Losses at which MiniMax-01 doubled its batch, in tokens (arXiv 2501.08313, section 4.3)."""


def test_the_papers_own_fit() -> None:
    """Its four points give an exponent of 6.121, and the batch at each to within 1 %."""
    law = fit_critical_batch(list(PAPER), list(PAPER.values()))
    assert law.exponent == pytest.approx(6.121, abs=0.001)
    for loss, batch in PAPER.items():
        assert law.at(loss) == pytest.approx(batch, rel=0.01)
        assert 16e6 * (2.22 / loss) ** 6.121 == pytest.approx(batch, rel=0.01)
    low, high = law.exponent_interval
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
        low, high = law.exponent_interval
        at_low, at_high = law.interval_at(2.0)
        covered += [low < 5 < high, at_low < 1e6 * 2.0**-5 < at_high]
    assert abs(covered / 600 - 0.95).max() < 0.03


def test_the_intervals_of_two_points_are_boundless() -> None:
    law = fit_critical_batch([4.0, 2.0], [100.0, 800.0])
    assert law.exponent == pytest.approx(3)
    assert law.exponent_interval == (-math.inf, math.inf) and law.interval_at(3.0) == (0, math.inf)


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


def sample(noise_scale: float) -> NoiseSample:
    return NoiseSample(trace=noise_scale * 0.25, square=0.25)


def test_the_batch_doubles_where_the_law_has_doubled() -> None:
    """By the paper's law, in thousandths: from 8 on the batch is doubled at the losses that the paper names."""
    batch, doubled = CriticalBatch(), {}
    for number, loss in enumerate(np.arange(2.7, 1.5, -0.001).tolist()):
        if batch.see(sample(16e3 * (2.22 / loss) ** 6.121), loss, 8e3 * batch.factor):
            batch.double()
            doubled[8 * batch.factor] = loss
        if batch.now is not None and number % 10 == 9:
            # A point is of ten measurements, whose averages lie on the law but for its curvature.
            assert batch.now[0] == pytest.approx(16e3 * (2.22 / (loss + 0.0045)) ** 6.121, rel=0.03)
        if number % 10 == 7:
            other = CriticalBatch()
            other.load_state_dict(json.loads(json.dumps(batch.state_dict())))
            batch = other
    assert doubled == pytest.approx({16: 2.22, 32: 1.98, 64: 1.77, 128: 1.58}, abs=0.016)
    assert re.match(r"the critical batch is 172,\d\d\d labels at a loss of 1.5\d\d", str(batch)), str(batch)
    batch.enter_stage(1)
    assert batch.factor == 1


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_a_noisy_law_seldom_doubles_too_early_and_doubles_in_the_end(noise: float) -> None:
    """40 runs, in each of which the critical batch grows 32-fold from the first batch on, in 60 noisy points."""
    draws, num_early, last = np.random.default_rng(1), 0, []
    for _ in range(40):
        batch, early = CriticalBatch(), False
        for loss in np.repeat(np.geomspace(4, 2, 60), 10).tolist():
            law = 1e3 * (4 / loss) ** 5
            if batch.see(sample(law * math.exp(draws.normal(-(noise**2) / 2, noise))), loss, 1e3 * batch.factor):
                batch.double()
                early |= 1e3 * batch.factor > law
        num_early += early
        last.append(batch.factor)
    assert num_early <= 2
    assert min(last) == 16


def test_nothing_is_decided_without_evidence() -> None:
    rising, level, few = CriticalBatch(), CriticalBatch(), CriticalBatch()
    for number, loss in enumerate(np.linspace(4, 2, 100).tolist()):
        assert not rising.see(sample(1e6 * loss), loss, 1), "the law rises with the loss"
        assert not level.see(sample(1e9), 3 + loss / 50, 1), "the losses are too near to each other"
        assert few.see(sample(1e6 * loss**-3), loss, 1) == (number >= 59 and number % 10 == 9)
    assert level.now is None
    assert str(level) == "too little is known of the critical batch: 10 points"


def test_points_that_say_nothing_are_left_out() -> None:
    batch = CriticalBatch()
    for loss in np.linspace(4, 2, 200).tolist():
        assert not batch.see(NoiseSample(trace=1.0, square=-0.1), loss, 1)
    assert str(batch).endswith("0 points")


class StoppedError(Exception):
    pass


def _grown(run_dir: Path, stop_after: int | None = None, steps: int = 17) -> TrainState:
    """A run that measures at every second step, and may double after the first and the third measurement."""

    def stop(state: TrainState, _: object) -> None:
        if state.step == stop_after:
            raise StoppedError

    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = toy_run.tiny_model()
    state = TrainState(model, MasterAdamW(model))
    state.resume(run_dir)
    settings = toy_run.settings(total_steps=steps, noise_scale_steps=2, max_batch_factor=4, checkpoint_steps=3)
    batches = toy_run.CountingBatches(9)
    fit(state, batches, Pretrain(), LearningRate(lr=1e-2), settings, run_dir=run_dir, callbacks=[stop])
    assert batches.served == 2 * steps, "the data are those of the stated batch"
    return state


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CriticalBatch.see

    def see(self: CriticalBatch, *given: Any) -> bool:
        plain(self, *given)
        return len(self._measured) in (1, 3)

    monkeypatch.setattr(CriticalBatch, "see", see)


@pytest.mark.usefixtures("doubles")
def test_a_growing_run_has_the_tokens_and_the_rates_of_the_stated_batch(tmp_path: Path) -> None:
    state = _grown(tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    # Four times the batch would be 19 of 17 steps; the last takes what is left.
    covered = [1, 1, 2, 2, 2, 2, 4, 3]
    assert np.diff([0, *(line["tokens"] for line in lines)]).tolist() == [72 * steps for steps in covered]
    ends = np.cumsum(covered)
    assert [line["lr"] for line in lines] == [LearningRate(lr=1e-2).lr_at(int(end) - 1, 17) for end in ends]
    assert [line["batch_factor"] for line in lines if "batch_factor" in line] == [2, 2, 4, 4]
    assert (state.step, state.stage_step, state.tokens) == (8, 17, 17 * 72)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("stop_after", [3, 5, pytest.param(7, marks=pytest.mark.slow)])
def test_a_growing_run_that_was_stopped_has_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole = _grown(tmp_path / "whole")
    with pytest.raises(StoppedError):
        _grown(tmp_path / "run", stop_after)
    resumed = _grown(tmp_path / "run")
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)

    def told(name: str) -> list[dict[str, Any]]:
        clock = {"time", "tokens_per_second", "mfu"}
        return [
            {k: v for k, v in line.items() if k not in clock}
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]

    assert told("run") == told("whole")
