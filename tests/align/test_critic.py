"""A critic beside the policy: its values, the advantages that follow on packed rows, and what it learns."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from one_process import assert_close
from rounds import Letters, batches_of, same, settings, state_of
from test_exactness import build
from two_objectives import completions, segments

from leyden.align.policy import Algorithm, CriticSettings, PolicyGradient, ValueLoss
from leyden.align.policy.critic import RETURN, VALUE
from leyden.align.policy.objective import ADVANTAGE, COUNT, DRAWN, REFERENCE
from leyden.align.rollouts.batches import RolloutBatches
from leyden.align.rollouts.critic import AfterCritic, Critic
from leyden.align.rollouts.rows import REWARD
from leyden.core.errors import UserError
from leyden.data import Batch
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer
from leyden.train import LearningRate, TrainState, train_step

PPO = {"preset": "ppo", "kl_weight": 0.0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


class SomeLetters(Letters):
    """Two turns, of which the second is graded; every second prompt has no reward."""

    def reply(self, row: Mapping[str, Any], answers: Sequence[str], /) -> str | None:
        return "And?" if len(answers) == 1 else None

    def score(self, row: Mapping[str, Any], response: str) -> float | None:
        return super().score(row, response) if row["number"] % 2 else None


def critic_of(tokenizer: Tokenizer, algorithm: Algorithm, dtype: torch.dtype = torch.float32, **how: Any) -> Critic:
    state = state_of(tokenizer, dtype, score_head=True)
    given = CriticSettings(**how)
    return Critic(state, given, algorithm, lambda step: 1e-2, clip_norm=1.0, max_skipped_steps=2)


def take_step(state: TrainState, batches: RolloutBatches, lr: float = 1e-2) -> tuple[Any, Mapping[str, Any]]:
    rows = [next(batches) for _ in range(batches.micro_batches(state.stage_step))]
    objective = PolicyGradient(batches._settings.algorithm)  # pyright: ignore[reportPrivateUsage]
    result = train_step(state, rows, objective, lr=lr, clip_norm=1.0)
    batches.teach_critic(state, result)
    return result, batches.step_facts().record


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_objective_is_plain_arithmetic_on_scores(clip: float) -> None:
    objective, batch = ValueLoss(clip), completions(seed=2, seq_len=37, sequences=3).batch(0)
    batch.per_document[COUNT][1] = 0.0  # a completion without a reward
    model, twin = build({"score_head": True}), build({"score_head": True})
    found = objective.sums(model, model.features(batch.tokens, cu_seqlens=batch.cu_seqlens), batch)
    loss, weight, clipped = torch.zeros((), dtype=torch.float64), 0, 0
    documents = [n for n, group in enumerate(batch.groups.tolist()) if group >= 0]  # pyright: ignore[reportOptionalMemberAccess]
    for place, document in zip(segments(batch), documents, strict=True):
        if batch.per_document[COUNT][document] == 0:
            continue
        learned = batch.labels[0, place] >= 0
        values = twin.scores(twin.features(batch.tokens[:, place]).hidden)[0, learned]
        before, target = (batch.per_token[name][0, place][learned].tolist() for name in (VALUE, RETURN))
        for value, old, aim in zip(values, before, target, strict=True):
            held = old + min(max(value.item() - old, -clip), clip)
            is_clipped = 0 < clip < abs(value.item() - old) and (held - aim) ** 2 > (value.item() - aim) ** 2
            loss = loss + (
                torch.tensor((held - aim) ** 2 / 2, dtype=torch.float64) if is_clipped else (value - aim) ** 2 / 2
            )
            weight, clipped = weight + 1, clipped + is_clipped
    assert_close(found.loss, loss, "the loss")
    assert found.weight.item() == weight and found.metrics["value_clipped"].item() == clipped
    assert (clipped > 0) == (clip > 0)
    found.loss.backward()
    loss.backward()
    for parameter, other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            assert_close(parameter[1].grad, other.grad, f"the gradient of {parameter[0]}")


def by_hand(rows: list[Batch], how: Algorithm) -> list[tuple[list[float], list[float], bool]]:
    """The advantages before they are whitened, and the returns, of each completion, from its last token to its first;
    and whether it counts."""
    found = []
    for row in rows:
        assert row.groups is not None
        for segment, group in enumerate(row.groups.tolist()):
            place = slice(*row.cu_seqlens[segment : segment + 2].tolist())
            drawn = np.flatnonzero(row.labels[0, place] >= 0).tolist()
            if group < 0 or not drawn:
                continue
            values, policy, reference = (
                row.per_token[name][0, place].double()[drawn].tolist() if name in row.per_token else None
                for name in (VALUE, DRAWN, REFERENCE)
            )
            assert values is not None and policy is not None
            advantages, ahead, value_ahead = [], 0.0, 0.0
            for number in reversed(range(len(drawn))):
                reward = float(row.per_document[REWARD][segment]) if number == len(drawn) - 1 else 0.0
                if how.kl_weight:
                    assert reference is not None
                    reward -= how.kl_weight * (policy[number] - reference[number])
                ahead = reward + how.gamma * value_ahead - values[number] + how.gamma * how.gae_lambda * ahead
                value_ahead = values[number]
                advantages.insert(0, ahead)
            returns = [a + v for a, v in zip(advantages, values, strict=True)]
            found.append((advantages, returns, bool(row.per_document[COUNT][segment] > 0)))
    return found


@pytest.mark.parametrize("scale", ["batch", "none"])
def test_rows_hold_the_advantage_and_the_return_of_every_token(
    tokenizer: Tokenizer, tmp_path: Path, scale: str
) -> None:
    algorithm = {**PPO, "scale": scale, "gamma": 0.97, "gae_lambda": 0.9, "kl_weight": 0.1}
    how = settings(mini_batches=2, algorithm=algorithm, kept_rollouts=9, max_tokens=50, max_turns=2)
    critic, reference = critic_of(tokenizer, how.algorithm), cast("HybridLM", state_of(tokenizer).model)
    with torch.no_grad():
        reference.norm.weight.mul_(1.5)
    with batches_of(
        state_of(tokenizer),
        tokenizer,
        tmp_path / "log",
        how,
        SomeLetters(),
        reference=reference,
        critic=critic,
    ) as batches:
        rows = [next(batches) for _ in range(2) for _ in range(batches.micro_batches(0))]
        facts = batches.step_facts().record
    expected = by_hand(rows, how.algorithm)
    assert facts["turns_mean"] > 1
    known = np.array([x for advantages, _, counts in expected for x in advantages if counts])
    mean, deviation = (known.mean(), known.std(ddof=1)) if scale == "batch" else (0.0, 1.0)
    assert any(not counts for *_, counts in expected), "some completion has no reward"
    numbers = iter(expected)
    for row in rows:
        assert row.groups is not None
        for segment, group in enumerate(row.groups.tolist()):
            place = slice(*row.cu_seqlens[segment : segment + 2].tolist())
            drawn = row.labels[0, place] >= 0
            given, target = (row.per_token[name][0, place] for name in (ADVANTAGE, RETURN))
            assert not given[~drawn].any() and not target[~drawn].any()
            if group < 0:
                continue
            advantages, returns, counts = next(numbers)
            scaled = [(x - mean) / deviation if counts else 0.0 for x in advantages]
            np.testing.assert_allclose(given[drawn], scaled, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(target[drawn], returns, rtol=1e-5, atol=1e-6)
    returns = np.array([x for _, returns, counts in expected for x in returns if counts])
    assert facts["return_mean"] == pytest.approx(returns.mean(), rel=1e-5)
    assert facts["explained_variance"] == pytest.approx(1 - (known.var() / returns.var()), rel=1e-4)
    logged = [json.loads(line)["advantage"] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(logged) == 4 and all(np.isfinite(logged)) and len(set(logged)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_first_update_no_ratio_and_no_value_has_changed(
    tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    how = settings(updates=2, algorithm=PPO)
    state, critic = state_of(tokenizer, dtype), critic_of(tokenizer, how.algorithm, dtype, value_clip=1e-9)
    with batches_of(state, tokenizer, tmp_path / "log", how, critic=critic) as batches:
        for _ in range(2):
            first, facts = take_step(state, batches)
            assert first.metrics["off_policy"] == 0 and first.metrics["ratio"] == 1
            assert facts["value_clipped"] == 0 and facts["value_loss"] > 0 and "explained_variance" in facts
            second, facts = take_step(state, batches)
            assert second.metrics["off_policy"] > 0.9
            assert facts["value_clipped"] > 0.1, "by a tiny clip, all that came nearer"
            assert set(facts) == {"value_loss", "value_clipped", "critic_grad_norm", "critic_lr"}
    assert critic.state.step == state.step == 4


def test_a_critic_of_zeros_leaves_the_rewards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With values of 0, gamma = 1 and lambda = 1 every token of a completion has its reward as advantage and return."""
    how = settings(algorithm={**PPO, "scale": "none", "gae_lambda": 1.0, "reward_weight": 2.0}, group_size=1)
    critic = critic_of(tokenizer, how.algorithm)
    with torch.no_grad():
        critic.state.optimizer.masters()["score.weight"].zero_()
    state = state_of(tokenizer)
    with batches_of(state, tokenizer, tmp_path / "log", how, critic=critic) as batches:
        rows = [next(batches) for _ in range(batches.micro_batches(0))]
    for row in rows:
        lengths = row.cu_seqlens.diff().long()
        rewards = row.per_document[REWARD].repeat_interleave(lengths)[None]
        counted = (row.per_document[COUNT] > 0).repeat_interleave(lengths)[None] & (row.labels >= 0)
        assert counted.any()
        torch.testing.assert_close(row.per_token[RETURN][counted].double(), rewards[counted])
        torch.testing.assert_close(row.per_token[ADVANTAGE][counted].double(), 2 * rewards[counted])


def test_a_place_within_a_round_keeps_the_values(tokenizer: Tokenizer, tmp_path: Path) -> None:
    how = settings(updates=2, algorithm=PPO)
    state, critic = state_of(tokenizer), critic_of(tokenizer, how.algorithm)
    with batches_of(state, tokenizer, tmp_path / "log", how, critic=critic) as batches:
        take_step(state, batches)
        saved = json.loads(json.dumps(batches.state_dict()))
        rest = [next(batches) for _ in range(batches.micro_batches(1))]
    with batches_of(state, tokenizer, tmp_path / "log", how, critic=critic_of(tokenizer, how.algorithm)) as again:
        again.load_state_dict(saved)
        found = [next(again) for _ in range(again.micro_batches(1))]
    assert all(same(a, b) for a, b in zip(found, rest, strict=True)) and VALUE in rest[0].per_token


def test_a_critic_that_is_not_finite_is_skipped_and_then_stops_the_run(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = settings(updates=3, algorithm=PPO)
    state, critic = state_of(tokenizer), critic_of(tokenizer, how.algorithm)
    with batches_of(state, tokenizer, tmp_path / "log", how, critic=critic) as batches:
        take_step(state, batches)
        with torch.no_grad():
            critic.state.model.score.weight.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue]
        _, facts = take_step(state, batches)
        assert facts["value_loss"] is None and "the loss of the critic or its gradient is not finite" in caplog.text
        with pytest.raises(UserError, match=r"2 steps of the critic in a row were skipped, to step 3"):
            take_step(state, batches)


class Vowels(Letters):
    """The share of vowels."""

    def score(self, row: Mapping[str, Any], response: str) -> float:
        return sum(letter in "aeiou" for letter in response) / max(1, len(response))


@pytest.mark.slow
def test_a_task_with_a_verifier_is_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    how = settings(group_size=1, prompts_per_step=64, updates=2, algorithm=PPO)
    state, critic = state_of(tokenizer), critic_of(tokenizer, how.algorithm)
    with torch.no_grad():
        critic.state.optimizer.masters()["score.weight"].zero_()
    found = []
    with batches_of(state, tokenizer, tmp_path / "log", how, Vowels(), critic=critic) as batches:
        for _ in range(60):
            _, facts = take_step(state, batches, lr=3e-3)
            if "reward" in facts:
                found.append([facts[name] for name in ("reward", "value_mean", "return_mean")])
    rewards, values, returns = np.array(found).T
    assert rewards[-5:].mean() > rewards[:5].mean() + 0.3, rewards
    assert values[0] == 0 and np.abs(values - returns)[-5:].mean() < 0.3 * returns[-5:].mean(), (values, returns)


def test_the_rate_of_a_policy_that_waits() -> None:
    plain = LearningRate(lr=1e-3, warmup_steps=2, schedule="linear")
    waiting = AfterCritic(**plain.model_dump(), alone_steps=3)
    rates = [waiting.lr_at(step, 13) for step in range(13)]
    assert rates == [0, 0, 0, *(plain.lr_at(step, 10) for step in range(10))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"preset": "grpo"}, "critic": {"lr": 1e-4}}, "critic is of an algorithm with a critic"),
        ({"algorithm": PPO, "group_size": 1, "redraws": 2}, "those of one completion always are"),
        ({"algorithm": PPO, "critic": {"value_clip": -1}}, "value_clip"),
        ({"algorithm": PPO, "critic": {"from": "x"}}, "from"),
    ],
)
def test_settings_of_a_critic_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)
