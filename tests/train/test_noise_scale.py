"""The noise scale of the gradient: unbiased, exact on a problem whose noise is known, and no change of the training."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_run
from hypothesis import given
from hypothesis import strategies as st

from leyden.train import LearningRate, MasterAdamW, Pretrain, TrainState, fit, read_metrics
from leyden.train.noise_scale import NoiseSample, NoiseScale, noise_sample
from leyden.train.step import train_step


@given(small=st.floats(0.1, 10), big=st.floats(0.1, 10), weight=st.integers(1, 1000), count=st.integers(2, 9))
def test_equal_micro_batches_give_the_formula_of_the_paper(small: float, big: float, weight: int, count: int) -> None:
    """Appendix A.1 of arXiv 1812.06162, as it is printed there, for norms of mean gradients."""
    total = count * weight
    square = (total * big**2 - weight * small**2) / (total - weight)
    trace = (small**2 - big**2) / (1 / weight - 1 / total)
    found = noise_sample([small * weight] * count, [weight] * count, big * total)
    assert found is not None
    assert found.trace == pytest.approx(trace, rel=1e-9, abs=1e-9 * weight * (small**2 + big**2))
    assert found.square == pytest.approx(square, rel=1e-9, abs=1e-9 * (small**2 + big**2))


def test_the_estimates_are_unbiased_whatever_the_weights() -> None:
    """Gradients of single labels with a known mean and covariance, in micro-batches of 1 to 40 labels."""
    draws = np.random.default_rng(0)
    mean, deviation = draws.normal(size=12), draws.uniform(0.5, 3, size=12)
    weights, trials = np.array([1, 7, 40, 16]), 3_000
    shape = (trials, len(weights), len(mean))
    sums = draws.normal(weights[:, None] * mean, np.sqrt(weights)[:, None] * deviation, shape)
    norms, totals = np.linalg.norm(sums, axis=2), np.linalg.norm(sums.sum(1), axis=1)
    samples = [
        noise_sample(*each) for each in zip(norms.tolist(), [weights.tolist()] * trials, totals.tolist(), strict=True)
    ]
    found = [(sample.trace, sample.square) for sample in samples if sample is not None]
    average, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(trials)
    assert abs(average[0] - (deviation**2).sum()) < 4 * error[0]
    assert abs(average[1] - (mean**2).sum()) < 4 * error[1]
    assert max(error / average) < 0.03, "the test would see a bias of some percent"


def test_what_says_nothing() -> None:
    assert noise_sample([1.0], [4], 1.0) is None
    assert noise_sample([1.0, 0.0], [4, 0], 1.0) is None
    assert noise_sample([math.inf, 1.0], [4, 4], math.inf) is None
    assert noise_sample([], [], 1.0) is None


def test_averages_are_of_both_parts_and_go_on_from_a_checkpoint() -> None:
    noise, samples = NoiseScale(), [NoiseSample(6.0, -1.0), NoiseSample(2.0, 3.0), NoiseSample(4.0, 1.0)]
    assert noise.loss is None
    noise.add(samples[0], 5.0)
    assert noise.value is None, "a negative square says nothing yet"
    other = NoiseScale()
    other.load_state_dict(json.loads(json.dumps(noise.state_dict())))
    for number, sample in enumerate(samples[1:]):
        noise.add(sample, 4.0 - number)
        other.add(sample, 4.0 - number)
    weights = np.array([0.98**2, 0.98, 1])
    assert noise.value == pytest.approx((weights @ [6, 2, 4]) / (weights @ [-1, 3, 1]))
    assert noise.loss == pytest.approx(weights @ [5, 4, 3] / weights.sum())
    assert (noise.value, noise.loss) == (other.value, other.loss)


def test_a_step_measures_the_gradients_of_its_micro_batches() -> None:
    """Beside gradients in float64, of each micro-batch by itself."""
    generator = torch.Generator().manual_seed(1)
    batches = [toy_run.counting_batch([number, 9], 7 + number, generator) for number in range(4)]
    double = toy_run.tiny_model(torch.float64)
    gradients, weights = [], []
    for batch in batches:
        double.zero_grad()
        sums = Pretrain().sums(double, features := double.features(batch.tokens, cu_seqlens=batch.cu_seqlens), batch)
        routers = double.router_losses(features).loss * sums.weight
        (sums.loss + routers).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in double.parameters() if p.grad is not None]))
        weights.append(float(sums.weight))
    total = torch.stack(gradients).sum(0)
    trace = sum(float(g.square().sum()) / w for g, w in zip(gradients, weights, strict=True))
    trace = (trace - float(total.square().sum()) / sum(weights)) / 3
    square = float((total / sum(weights)).square().sum()) - trace / sum(weights)
    model = toy_run.tiny_model()
    state = TrainState(model, MasterAdamW(model))
    result = train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0, measure_noise=True)
    assert result.noise is not None
    assert result.noise.trace == pytest.approx(trace, rel=1e-4)
    assert result.noise.square == pytest.approx(square, rel=1e-3)
    assert train_step(state, batches, Pretrain(), lr=1e-3, clip_norm=1.0).noise is None


def _seed() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def _fit(run_dir: Path, every: int, total_steps: int = 7) -> TrainState:
    _seed()
    model = toy_run.tiny_model(torch.bfloat16)
    state = TrainState(model, MasterAdamW(model))
    state.resume(run_dir)
    settings = toy_run.settings(total_steps=total_steps, noise_scale_steps=every)
    fit(state, toy_run.CountingBatches(9), Pretrain(), LearningRate(lr=1e-2), settings, run_dir=run_dir)
    return state


def test_it_changes_nothing_and_is_logged_now_and_then(tmp_path: Path) -> None:
    plain, measured = _fit(tmp_path / "plain", 0), _fit(tmp_path / "measured", 3)
    for one, other in zip(plain.model.state_dict().values(), measured.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    lines = read_metrics(tmp_path / "measured" / "metrics.jsonl")
    assert [line["step"] for line in lines if "noise_scale" in line] == [3, 6]
    assert not any("noise_scale" in line for line in read_metrics(tmp_path / "plain" / "metrics.jsonl"))
