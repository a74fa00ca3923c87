"""Advantages, surrogates and divergences against their formulas, one number at a time in plain Python."""

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.policy import PRESETS, Algorithm
from leyden.align.policy.advantages import EPSILON, advantages, balanced
from leyden.align.policy.algorithm import WHOLE
from leyden.align.policy.divergence import divergence, whole_divergence
from leyden.align.policy.shaping import overlong_is_worse, shorter_is_better
from leyden.align.policy.surrogate import surrogate
from leyden.core.errors import UserError

REWARDS = st.lists(st.one_of(st.just(math.nan), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-3, 3)), min_size=4).map(
    lambda values: np.array(values[: len(values) // 4 * 4]).reshape(-1, 4)
)


def algorithm(**settings: Any) -> Algorithm:
    return Algorithm.parse({"preset": "grpo", **settings}, "test")


def plain_advantages(rewards: np.ndarray, settings: Algorithm) -> list[list[float]]:
    every = [reward for reward in rewards.flatten().tolist() if not math.isnan(reward)]
    found = []
    for group in rewards.tolist():
        known = [reward for reward in group if not math.isnan(reward)]
        row = []
        for place, reward in enumerate(group):
            if math.isnan(reward) or len(set(known)) < 2:
                row.append(0.0)
                continue
            others = [r for other, r in enumerate(group) if other != place and not math.isnan(r)]
            base = statistics.fmean(known if settings.baseline == "group_mean" else others)
            spread = {"group": known, "batch": every}.get(settings.scale)
            row.append((reward - base) / (1.0 if spread is None else statistics.stdev(spread) + EPSILON))
        found.append(row)
    return found


@settings(max_examples=60, deadline=None)
@given(
    rewards=REWARDS,
    baseline=st.sampled_from(["group_mean", "leave_one_out"]),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_are_their_formula(rewards: np.ndarray, baseline: str, scale: str) -> None:
    how = algorithm(baseline=baseline, scale=scale)
    found = advantages(rewards, how)
    np.testing.assert_allclose(found.values, plain_advantages(rewards, how), rtol=1e-9, atol=1e-9)
    assert (found.measured == ~np.isnan(rewards)).all()
    for group, signal in zip(rewards, found.signal, strict=True):
        assert signal == (len(set(group[~np.isnan(group)].tolist())) > 1)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_without_a_signal_advantages_are_exactly_0(baseline: str) -> None:
    rewards = np.array([[0.1] * 4, [math.nan] * 4, [math.nan, 0.7, math.nan, math.nan], [0.0, 0.3, 0.3, math.nan]])
    found = advantages(rewards, algorithm(baseline=baseline))
    assert found.signal.tolist() == [False, False, False, True]
    assert not found.values[:3].any() and found.values[3, 3] == 0 and found.values[3, 0] < 0 < found.values[3, 1]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-3, 3).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=1, max_size=12),
    data=st.data(),
)
def test_balance_scales_the_larger_side_down(values: list[float], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 9), min_size=len(values), max_size=len(values)))
    found = balanced(np.array(values), np.array(weights)).tolist()
    above = math.fsum(w * v for v, w in zip(values, weights, strict=True) if v > 0)
    below = math.fsum(-w * v for v, w in zip(values, weights, strict=True) if v < 0)
    for before, after in zip(values, found, strict=True):
        factor = 1.0
        if above and below:
            factor = min(1, below / above) if before > 0 else min(1, above / below)
        assert after == pytest.approx(before * factor, rel=1e-12)
        assert abs(after) <= abs(before)
    if above and below:
        assert math.fsum(w * v for v, w in zip(found, weights, strict=True)) == pytest.approx(0, abs=1e-9 * above)


def test_balance_changes_nothing_where_completions_weigh_alike() -> None:
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 0, 1], [0.2, 0.9, 0.4, 0.4]])
    values = advantages(rewards, algorithm()).values
    np.testing.assert_allclose(balanced(values, np.ones_like(values)), values, rtol=1e-12)
    long_and_bad = balanced(values, np.where(values < 0, 90.0, 3.0))
    assert (long_and_bad[values > 0] == values[values > 0]).all()
    np.testing.assert_allclose(long_and_bad[values < 0], values[values < 0] / 30)


@settings(max_examples=60, deadline=None)
@given(rewards=REWARDS.filter(len), data=st.data())
def test_lengths_shape_rewards_by_their_formulas(rewards: np.ndarray, data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(1, 20), min_size=rewards.size, max_size=rewards.size)))
    tokens = tokens.reshape(rewards.shape)
    short, long = shorter_is_better(rewards, tokens, 0.3), overlong_is_worse(rewards, tokens, 20, 6)
    for row, group in enumerate(rewards.tolist()):
        lengths = tokens[row].tolist()
        for place, reward in enumerate(group):
            if math.isnan(reward):
                assert math.isnan(short[row, place]) and math.isnan(long[row, place])
                continue
            gain = 0.0
            if max(lengths) > min(lengths):
                gain = 0.5 - (lengths[place] - min(lengths)) / (max(lengths) - min(lengths))
                gain = gain if reward >= 1 else min(0.0, gain)
            assert short[row, place] == pytest.approx(reward + 0.3 * gain)
            over = 0.0 if lengths[place] <= 14 else (14 - lengths[place]) / 6
            assert long[row, place] == pytest.approx(reward + over)


def plain_surrogate(log_ratio: float, log_prob: float, advantage: float, how: Algorithm) -> tuple[float, float]:
    """The loss, and its derivative by the log-probability."""
    ratio = math.exp(log_ratio)
    low, high = 1 - how.clip_low, 1 + how.clip_high if how.clip_high else math.inf
    bounded = min(max(ratio, low), high)
    if how.drop_above and advantage < 0 and ratio > how.drop_above:
        return 0.0, 0.0
    if how.surrogate == "cispo":
        return -bounded * advantage * log_prob, -bounded * advantage
    if bounded * advantage < ratio * advantage:
        return -bounded * advantage, 0.0
    return -ratio * advantage, -ratio * advantage


@settings(max_examples=100, deadline=None)
@given(
    log_ratio=st.floats(-3, 3),
    log_prob=st.floats(-9, -1e-3),
    advantage=st.floats(-3, 3),
    name=st.sampled_from(sorted(PRESETS)),
)
def test_surrogates_are_their_formula(log_ratio: float, log_prob: float, advantage: float, name: str) -> None:
    how = Algorithm.parse({"preset": name}, "test")
    now = torch.tensor(log_prob, dtype=torch.float64, requires_grad=True)
    drawn = log_prob - log_ratio
    found = surrogate(how, now - drawn, now, torch.tensor(advantage, dtype=torch.float64))
    found.loss.backward()
    loss, slope = plain_surrogate(log_prob - drawn, log_prob, advantage, how)
    assert now.grad is not None
    assert (found.loss.item(), now.grad.item()) == pytest.approx((loss, slope), rel=1e-9, abs=1e-12)
    assert found.ratio.item() == pytest.approx(math.exp(log_prob - drawn))
    if found.clipped.item() and how.surrogate == "clip":
        assert now.grad.item() == 0


def test_a_dropped_token_has_the_gradient_of_the_dual_clip_and_no_loss() -> None:
    how = algorithm(drop_above=3.0)
    log_ratio = torch.tensor([math.log(2.9), math.log(3.1), 500.0, math.log(3.1)], requires_grad=True)
    advantage = torch.tensor([-1.0, -1.0, -1.0, 1.0])
    found = surrogate(how, log_ratio, log_ratio, advantage)
    assert found.discarded.tolist() == [False, True, True, False]
    assert found.loss[1:3].tolist() == [0, 0] and found.clipped.tolist() == [False, False, False, True]
    (gradient,) = torch.autograd.grad(found.loss.sum(), log_ratio)
    dual = torch.maximum(torch.minimum(log_ratio.clamp(max=20).exp() * -advantage, 3.0 * -advantage), -1.2 * advantage)
    (expected,) = torch.autograd.grad(dual[:2].sum(), log_ratio)
    assert gradient[:2].tolist() == pytest.approx(expected[:2].tolist()) and gradient[2:].tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(log_prob=st.floats(-9, -1e-3), reference=st.floats(-9, -1e-3))
def test_divergences_are_their_formula(log_prob: float, reference: float) -> None:
    d = log_prob - reference
    expected = {
        "k1": (d, 1.0),
        "k2": (d * d / 2, d),
        "k3": (math.exp(-d) - 1 + d, 1 - math.exp(-d)),
        "minimax": ((math.exp(log_prob) - math.exp(reference)) * log_prob, math.exp(log_prob) - math.exp(reference)),
    }
    for kind, (value, slope) in expected.items():
        now = torch.tensor(log_prob, dtype=torch.float64, requires_grad=True)
        found = divergence(kind, now, torch.tensor(reference, dtype=torch.float64))  # pyright: ignore[reportArgumentType]
        found.backward()
        assert now.grad is not None
        assert (found.item(), now.grad.item()) == pytest.approx((value, slope), rel=1e-9, abs=1e-12), kind


def test_what_the_gradients_of_divergences_are_on_average() -> None:
    """Over a distribution of seven tokens, exactly: as the module's first lines say."""
    torch.manual_seed(0)
    logits, reference = torch.randn(2, 7, dtype=torch.float64)
    logits.requires_grad_()
    p, q = logits.log_softmax(0), reference.log_softmax(0)

    def mean_gradient(kind: Any) -> torch.Tensor:
        terms = divergence(kind, p, q)
        return torch.autograd.grad((p.exp().detach() * terms).sum(), logits, retain_graph=True)[0]

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    forward, backward = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()
    distance = (p.exp() - q.exp()).square().sum() / 2
    for kind, value in {"k2": forward, "k3": backward, "minimax": distance}.items():
        torch.testing.assert_close(mean_gradient(kind), gradient(value), rtol=1e-10, atol=1e-12)
    assert mean_gradient("k1").abs().max() < 1e-12
    (per_token,) = torch.autograd.grad(divergence("minimax", p, q).sum(), p, retain_graph=True)
    assert per_token.abs().max() < 1


def whole_logits(seed: int) -> tuple[torch.nn.Linear, torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """Output projections of two models of unequal width over 13 words, and hidden states of 11 tokens of each."""
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.nn.Linear(width, 13, bias=False, dtype=torch.float64) for width in (5, 3)]
    hidden = [torch.randn(11, width, dtype=torch.float64, generator=generator) for width in (5, 3)]
    for head in heads:
        torch.nn.init.normal_(head.weight, generator=generator)
    return heads[0], heads[1], hidden[0].requires_grad_(), hidden[1]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("chunk", [13, 52, 1 << 20])
def test_whole_divergences_are_their_formula(kind: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leyden.align.policy.divergence._CHUNK_LOGITS", chunk)
    head, their_head, hidden, theirs = whole_logits(seed=3)
    weights = torch.arange(11, dtype=torch.float64)
    found = whole_divergence(kind, hidden, head, theirs, their_head, 13, temperature=0.7)
    assert torch.autograd.grad(found.sum(), their_head.weight, allow_unused=True, retain_graph=True)[0] is None
    p, q = ((h(x) / 0.7).softmax(-1) for h, x in ((head, hidden), (their_head, theirs.detach())))
    q, m = q.detach(), (p + q.detach()) / 2
    of_p, of_q = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    middle = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    expected = {"reverse": of_p, "forward": of_q, "jensen_shannon": middle}[kind]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    wanted = (hidden, head.weight)
    slopes = torch.autograd.grad((weights * found).sum(), wanted)
    for slope, other in zip(slopes, torch.autograd.grad((weights * expected).sum(), wanted), strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_k2_is_that_of_the_whole_divergence_on_average() -> None:
    head, their_head, hidden, theirs = whole_logits(seed=5)
    whole = whole_divergence("reverse", hidden, head, theirs, their_head, 13)
    p, q = head(hidden).log_softmax(-1), their_head(theirs).log_softmax(-1).detach()
    estimate = (p.exp().detach() * divergence("k2", p, q)).sum(-1)
    slopes = [torch.autograd.grad(x.sum(), hidden, retain_graph=True)[0] for x in (whole, estimate)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "beta"), [("forward", 0), ("jensen_shannon", 0.5), ("reverse", 1)])
def test_whole_divergences_are_those_of_trl(kind: Any, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    from trl.experimental.gkd import GKDTrainer

    head, their_head, hidden, theirs = whole_logits(seed=7)
    found = whole_divergence(kind, hidden, head, theirs, their_head, 13, temperature=1.3)
    expected = GKDTrainer.generalized_jsd_loss(
        head(hidden)[None], their_head(theirs)[None], beta=beta, temperature=1.3, reduction="none"
    )
    torch.testing.assert_close(found, expected[0].sum(-1), rtol=1e-9, atol=1e-11)


def test_presets_are_settings_of_one_algorithm() -> None:
    assert set(PRESETS) == {"minimax", "grpo", "dr_grpo", "dapo", "cispo", "gspo", "rloo", "ppo", "distillation"}
    changed = Algorithm.parse({"preset": "dapo", "clip_low": 0.1}, "test")
    assert (changed.clip_low, changed.clip_high, changed.denominator) == (0.1, 0.28, "tokens")
    for name in PRESETS:
        said = Algorithm.parse({"preset": name}, "test")
        assert Algorithm.parse(said.model_dump(mode="json"), "again") == said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "a2c"}, "must be one of minimax, grpo"),
        ({"preset": "dapoo"}, "did you mean 'dapo'"),
        ({"drop_above": 0.9}, "would drop tokens whose ratio is 1"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"kl": "k4"}, "'kl'"),
        ({"preset": "distillation", "kl_weight": 0}, "nothing to learn from"),
        ({"preset": "ppo", "reward_weight": 0}, 'kl_in = "reward" there is nothing to learn from'),
        ({"preset": "ppo", "scale": "group"}, "a critic compares a completion with no group"),
        ({"preset": "ppo", "balance": True}, "balance is of one advantage a completion"),
        ({"preset": "ppo", "kl": "minimax"}, "is no divergence"),
        ({"preset": "dapo", "gae_lambda": 1.0}, "gae_lambda is of the advantages of single tokens, which a critic"),
        ({"preset": "grpo", "kl_in": "reward"}, "kl_in is of the advantages of single tokens"),
        ({"preset": "ppo", "gamma": 0}, "gamma"),
    ],
)
def test_what_is_no_algorithm_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Algorithm.parse(settings, "test")
