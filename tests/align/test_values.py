"""Advantages by a critic and its loss against their formulas, one number at a time in plain Python."""

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.policy.values import (
    drawn_tokens,
    explained_variance,
    generalised_advantages,
    token_rewards,
    value_losses,
    whitened,
)

SHARES = st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
NUMBERS = st.floats(-3, 3)


@st.composite
def episodes(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    """Rewards and values of up to five rollouts, of which some have one token or none."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    rewards, values = ([draw(st.lists(NUMBERS, min_size=n, max_size=n)) for n in lengths] for _ in range(2))
    return rewards, values


def flat(parts: list[list[float]]) -> np.ndarray:
    return np.array([x for part in parts for x in part], np.float64)


def bounds_of(parts: list[list[float]]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)])


def by_formula(rewards: list[float], values: list[float], gamma: float, gae_lambda: float) -> list[float]:
    """Every advantage as the whole sum, as the paper has it."""
    behind = [*values, 0.0]
    deltas = [reward + gamma * behind[t + 1] - behind[t] for t, reward in enumerate(rewards)]
    return [
        math.fsum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@settings(max_examples=60, deadline=None)
@given(given_=episodes(), gamma=SHARES, gae_lambda=SHARES)
def test_advantages_are_the_sums_of_the_formula(given_: Any, gamma: float, gae_lambda: float) -> None:
    rewards, values = given_
    found = generalised_advantages(flat(rewards), flat(values), bounds_of(rewards), gamma=gamma, gae_lambda=gae_lambda)
    expected = [by_formula(*pair, gamma, gae_lambda) for pair in zip(rewards, values, strict=True)]
    np.testing.assert_allclose(found, flat(expected), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(given_=episodes(), gamma=SHARES)
def test_returns_at_both_ends_of_lambda(given_: Any, gamma: float) -> None:
    """At 1 the return is what followed, whatever the critic said; at 0 one reward and the next value."""
    rewards, values = given_
    how, own = {"bounds": bounds_of(rewards), "gamma": gamma}, flat(values)
    all_rewards = generalised_advantages(flat(rewards), own, gae_lambda=1.0, **how) + own
    of_next = generalised_advantages(flat(rewards), own, gae_lambda=0.0, **how) + own
    followed = [[math.fsum(gamma**k * r for k, r in enumerate(part[t:])) for t in range(len(part))] for part in rewards]
    np.testing.assert_allclose(all_rewards, flat(followed), rtol=1e-10, atol=1e-10)
    one = [
        [r + gamma * after for r, after in zip(part, [*own_values[1:], 0.0], strict=True)]
        for part, own_values in zip(rewards, values, strict=True)
        if part
    ]
    np.testing.assert_allclose(of_next, flat(one), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(given_=episodes(), gamma=SHARES, gae_lambda=SHARES)
def test_rollouts_packed_together_are_the_rollouts_alone(given_: Any, gamma: float, gae_lambda: float) -> None:
    rewards, values = given_
    how = {"gamma": gamma, "gae_lambda": gae_lambda}
    together = generalised_advantages(flat(rewards), flat(values), bounds_of(rewards), **how)
    alone = [
        generalised_advantages(np.array(r), np.array(v), np.array([0, len(r)]), **how)
        for r, v in zip(rewards, values, strict=True)
    ]
    assert together.tolist() == np.concatenate(alone).tolist(), "to the bit"


def test_padded_rows_with_masks_as_other_toolkits_have_them_give_the_same() -> None:
    """The recurrence over [rollouts, tokens] with a mask, in which what is no token of the policy is passed over."""
    random = np.random.default_rng(0)
    shape, gamma, gae_lambda = (5, 23), 0.97, 0.9
    mask = random.random(shape) < 0.6  # several turns: what the environment said stands between
    rewards, values = random.standard_normal((2, *shape)) * mask
    expected, after, advantage = np.zeros(shape), np.zeros(5), np.zeros(5)
    for t in reversed(range(shape[1])):
        delta = rewards[:, t] + gamma * after - values[:, t]
        advantage = np.where(mask[:, t], delta + gamma * gae_lambda * advantage, advantage)
        after = np.where(mask[:, t], values[:, t], after)
        expected[:, t] = advantage
    labels = np.where(mask, 7, -100).flatten()
    places, bounds = drawn_tokens(labels, np.arange(6) * shape[1])
    found = generalised_advantages(
        rewards.flatten()[places], values.flatten()[places], bounds, gamma=gamma, gae_lambda=gae_lambda
    )
    np.testing.assert_allclose(found, expected.flatten()[places], rtol=1e-12)


def test_the_tokens_of_a_packed_row_of_several_turns() -> None:
    no = -100
    #                  prompt  turn   reply  turn | prompt, nothing drawn | one token | padding
    labels = np.array([no, no, 5, 6, no, no, 7, no, no, no, no, no, 8, no, no, no])
    places, bounds = drawn_tokens(labels, np.array([0, 8, 11, 13, 16]))
    assert places.tolist() == [2, 3, 6, 12] and bounds.tolist() == [0, 3, 3, 4, 4]
    rewards = np.array([2.0, 9.0, -1.0, 9.0])
    assert token_rewards(rewards, bounds).tolist() == [0, 0, 2, -1]
    penalties = np.array([0.5, 0.25, 1.0, 2.0])
    assert token_rewards(rewards, bounds, penalties).tolist() == [-0.5, -0.25, 1.0, -3.0]
    assert penalties.tolist() == [0.5, 0.25, 1.0, 2.0], "what is given stays"
    # The reward comes at the last turn, and goes back over what the environment said as over one step.
    found = generalised_advantages(np.array([0, 0, 2.0, -1]), np.zeros(4), bounds, gamma=0.5, gae_lambda=1.0)
    assert found.tolist() == [0.5, 1.0, 2.0, -1.0]


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=12))
def test_whitening_is_its_formula(values: list[tuple[float, bool]]) -> None:
    numbers, counted = (np.array(part) for part in zip(*values, strict=True))
    found = whitened(numbers, counted)
    known = [x for x, is_counted in values if is_counted]
    if len(known) < 2:
        assert found.tolist() == numbers.tolist()
        return
    mean, deviation = statistics.fmean(known), math.sqrt(statistics.variance(known) + 1e-8)
    np.testing.assert_allclose(found, [(x - mean) / deviation for x, _ in values], rtol=1e-6, atol=1e-9)


def test_explained_variance() -> None:
    returns = np.array([0.0, 1.0, 1.0, 0.5])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.full(4, 0.3), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(returns, np.full(4, 2.0)) is None
    assert explained_variance(np.zeros(0), np.zeros(0)) is None


@settings(max_examples=100, deadline=None)
@given(value=NUMBERS, before=NUMBERS, target=NUMBERS, clip=st.sampled_from([0.0, 0.2, 0.5]))
def test_the_value_loss_is_its_formula(value: float, before: float, target: float, clip: float) -> None:
    now = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    old, aim = (torch.tensor(x, dtype=torch.float64) for x in (before, target))
    loss, is_clipped = value_losses(now, old, aim, clip)
    loss.backward()
    free = (value - target) ** 2 / 2
    held = (before + min(max(value - before, -clip), clip) - target) ** 2 / 2 if clip else free
    assert now.grad is not None
    assert loss.item() == pytest.approx(max(free, held), rel=1e-12, abs=1e-15)
    assert is_clipped.item() == (held > free)
    if is_clipped:
        assert now.grad.item() == 0 and abs(value - before) > clip
    elif free > held or not clip:
        assert now.grad.item() == pytest.approx(value - target, rel=1e-12, abs=1e-15)


def test_a_value_is_not_clipped_before_it_has_changed() -> None:
    values = torch.linspace(-2, 2, 9, dtype=torch.float64)
    loss, is_clipped = value_losses(values, values.clone(), torch.zeros(9, dtype=torch.float64), 0.2)
    assert not is_clipped.any() and torch.equal(loss, values.square() / 2)
