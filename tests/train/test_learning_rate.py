"""The learning rate: every kind at its corners, and what holds for all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.train import LearningRate


def test_the_papers_schedule_in_small() -> None:
    schedule = LearningRate(lr=2e-4, final_lr=3e-5, warmup_steps=5, decay_share=0.4)
    rates = [schedule.lr_at(step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([4e-5, 8e-5, 1.2e-4, 1.6e-4, 2e-4])
    assert rates[5:12] == [2e-4] * 7
    ratios = [after / before for before, after in zip(rates[11:], rates[12:], strict=False)]
    assert ratios == pytest.approx([0.15 ** (1 / 8)] * 8)
    assert rates[-1] == pytest.approx(3e-5)


def test_cosine_from_the_later_stages() -> None:
    schedule = LearningRate(lr=1e-5, final_lr=1e-6, schedule="cosine", decay_share=1.0)
    rates = [schedule.lr_at(step, 100) for step in range(100)]
    assert rates[49] == pytest.approx((1e-5 + 1e-6) / 2)
    assert rates[24] == pytest.approx(1e-6 + 9e-6 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[-1] == pytest.approx(1e-6)


def test_linear_and_constant() -> None:
    linear = LearningRate(lr=1.0, final_lr=0.5, schedule="linear", decay_share=1.0)
    assert [linear.lr_at(step, 5) for step in range(5)] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    constant = LearningRate(lr=1.0, schedule="constant", warmup_steps=1)
    assert [constant.lr_at(step, 5) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_decay_to_zero(kind: str) -> None:
    schedule = LearningRate.parse({"lr": 1.0, "final_lr": 0, "schedule": kind, "decay_share": 0.5}, "test")
    rates = [schedule.lr_at(step, 8) for step in range(8)]
    assert rates[:4] == [1.0] * 4
    assert all(before > after for before, after in zip(rates[3:], rates[4:], strict=False))
    assert rates[-1] == pytest.approx(0, abs=1e-15)


@given(
    kind=st.sampled_from(["constant", "linear", "cosine", "exponential"]),
    warmup=st.integers(0, 30),
    total=st.integers(1, 60),
    share=st.floats(0.01, 1),
    floor=st.floats(0.001, 1),
)
def test_rises_then_falls_within_its_bounds(kind: str, warmup: int, total: int, share: float, floor: float) -> None:
    schedule = LearningRate.parse(
        {"lr": 0.5, "schedule": kind, "warmup_steps": warmup, "decay_share": share, "final_lr": 0.5 * floor}, "test"
    )
    rates = [schedule.lr_at(step, total) for step in range(total)]
    assert all(0 < rate <= 0.5 * (1 + 1e-12) for rate in rates)
    peak = min(warmup, total)
    assert all(a < b for a, b in zip(rates[:peak], rates[1:peak], strict=False))
    assert all(a >= b - 1e-15 for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if warmup < total and kind != "constant":
        assert rates[-1] == pytest.approx(0.5 * floor)


def test_default_ends_at_a_tenth() -> None:
    assert LearningRate(lr=1.0).lr_at(9, 10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": 0.0}, "'lr'.*greater than 0"),
        ({"lr": 1e-3, "final_lr": 1e-2}, "final_lr .0.01. must not exceed lr"),
        ({"lr": 1e-3, "final_lr": 0.0}, "never comes to final_lr = 0; take a linear or cosine"),
        ({"lr": 1e-3, "schedule": "cosin"}, "'schedule'.*'cosine'"),
        ({"lr": 1e-3, "warmup": 5}, "unknown key 'warmup'; did you mean 'warmup_steps'"),
    ],
)
def test_bad_input(bad: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LearningRate.parse(bad, "recipe.toml")


def test_biases_of_routers_stop_late() -> None:
    rate = LearningRate(expert_bias_share=0.75)
    assert [rate.expert_bias_rate_at(step, 8) for step in (0, 5, 6, 7)] == [0.001, 0.001, 0, 0]
    assert LearningRate(expert_bias_rate=0.1).expert_bias_rate_at(7, 8) == 0.1
    assert LearningRate(expert_bias_share=0).expert_bias_rate_at(0, 8) == 0
