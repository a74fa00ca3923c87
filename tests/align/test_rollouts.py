"""Completions drawn by the engine on the trainer's own weights, and what the training loop reads of them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds import Letters, batches_of, same, settings, state_of

from leyden.align.policy import Algorithm, PolicyGradient
from leyden.align.policy.objective import ADVANTAGE, COUNT, DRAWN, LOSS_WEIGHT, REFERENCE
from leyden.align.rewards import Reward
from leyden.align.rollouts.batches import RolloutBatches
from leyden.align.rollouts.drawing import Group, Rollout
from leyden.align.rollouts.environment import open_environment
from leyden.align.rollouts.prompts import Prompt, Prompts
from leyden.align.rollouts.settings import RolloutSettings
from leyden.core.errors import UserError
from leyden.model import Cache
from leyden.tokenizer import Tokenizer
from leyden.train import TrainState, train_step


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


def take_step(state: TrainState, batches: RolloutBatches, objective: PolicyGradient) -> Any:
    rows = [next(batches) for _ in range(batches.micro_batches(state.stage_step))]
    result = train_step(state, rows, objective, lr=1e-2, clip_norm=1.0)
    batches.check(state, result)
    return result


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float32, 1.0), (torch.float32, 0.7), (torch.bfloat16, 1.0)])
def test_ratios_are_exactly_1_until_the_weights_change(
    tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype, temperature: float
) -> None:
    state, how = state_of(tokenizer, dtype), settings(updates=2, temperature=temperature)
    weights = [parameter.data_ptr() for parameter in state.model.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
    objective = PolicyGradient(Algorithm(preset="grpo", kl_weight=0.0), temperature)
    bound = 1e-4 if dtype == torch.float32 else 0.5
    with batches_of(state, tokenizer, tmp_path / "log", how) as batches:
        for _ in range(2):
            first = take_step(state, batches, objective)
            facts = batches.step_facts().record
            assert first.metrics["off_policy"] == 0 and first.metrics["ratio"] == 1
            assert 0 < facts["drift"] < bound
            second = take_step(state, batches, objective)
            assert second.metrics["off_policy"] > 0.9 and not second.skipped
            assert batches.step_facts().record == {}
    assert weights == [parameter.data_ptr() for parameter in state.model.parameters()], "no copy took their place"  # pyright: ignore[reportAttributeAccessIssue]


def test_rows_hold_every_completion_with_its_advantage_and_weight(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for denominator in ("sequences", "tokens", "constant"):
        state = state_of(tokenizer)
        how = settings(
            mini_batches=2, algorithm={"preset": "grpo", "denominator": denominator}, kept_rollouts=4, max_tokens=12
        )
        log = tmp_path / f"{denominator}.jsonl"
        reference = state_of(tokenizer).model
        with batches_of(state, tokenizer, log, how, reference=reference) as batches:  # pyright: ignore[reportArgumentType]
            parts = [[next(batches) for _ in range(batches.micro_batches(0))] for _ in range(2)]
            facts = batches.step_facts().record
        seen = 0
        for row in (row for part in parts for row in part):
            assert row.tokens.shape[1] <= 384
            assert torch.equal(row.per_token[DRAWN], row.per_token[REFERENCE]), "the same weights"
            assert row.groups is not None
            for segment, group in enumerate(row.groups.tolist()):
                place = slice(*row.cu_seqlens[segment : segment + 2].tolist())
                labels = row.labels[0, place]
                if group < 0:
                    assert (labels == -100).all()
                    continue
                seen += 1
                tokens = int((labels >= 0).sum())
                text = tokenizer.decode(row.tokens[0, place].tolist())
                assert 1 <= tokens <= 12 and "so?" in text
                values = [float(row.per_document[name][segment]) for name in (ADVANTAGE, LOSS_WEIGHT, COUNT)]
                advantage, weight, count = values
                if weight == 0:
                    assert advantage == count == 0
                    continue
                assert count == pytest.approx(1 if denominator == "tokens" else 1 / tokens)
                assert weight == pytest.approx(1 / 12 if denominator == "constant" else count)
        assert seen == 16
        kept = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(kept) == 4 and all(one["step"] == 1 for one in kept)
        assert {one["prompt"] for one in kept} <= {f"Is {number} so?" for number in range(5)}
        assert facts["cut"] > 0 and facts["unmeasured"] >= 0


def test_missing_rewards_and_groups_that_are_alike_are_counted_and_not_learned_from(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Letters):
        def score(self, row: Mapping[str, Any], response: str) -> Any:
            number = row["number"]
            if number == 0:
                raise UserError("row 0 is broken")
            return {1: math.nan, 2: None, 3: np.float32(0.5), 4: math.inf}[number]

    state = state_of(tokenizer)
    how = settings(prompts_per_step=5, algorithm={"preset": "grpo"})
    with batches_of(state, tokenizer, tmp_path / "log", how, Odd()) as batches:
        rows = [next(batches) for _ in range(batches.micro_batches(0))]
        facts = batches.step_facts().record
        counts = torch.cat([row.per_document[COUNT] for row in rows])
        assert facts["unmeasured"] == 16 and facts["no_signal"] == 1 and facts["reward"] == 0.5
        assert int((counts > 0).sum()) == 4 and not torch.cat([row.per_document[ADVANTAGE] for row in rows]).any()
    assert "16 of 20 completions have no reward" in caplog.text
    objective = PolicyGradient(Algorithm(preset="grpo", kl_weight=0.0))
    assert train_step(state, rows, objective, lr=1e-2, clip_norm=1.0).loss == 0

    class Nothing(Letters):
        def score(self, row: Mapping[str, Any], response: str) -> Any:
            return None

    with batches_of(state, tokenizer, tmp_path / "log", how, Nothing()) as batches:
        assert take_step(state, batches, objective).skipped, "there is nothing to divide by"
        assert batches.step_facts().note == "no reward"


def test_a_place_within_a_round_is_kept_with_its_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    how, objective = settings(updates=2, mini_batches=2), PolicyGradient(Algorithm(preset="grpo", kl_weight=0.0))
    state = state_of(tokenizer)
    with batches_of(state, tokenizer, tmp_path / "log", how) as batches:
        assert set(batches.state_dict()) == {"batch", "step", "fingerprint"}  # between two rounds
        take_step(state, batches, objective)
        saved = json.loads(json.dumps(batches.state_dict()))
        assert saved["step"] == 1 and saved["rows"]
        rest = [next(batches) for _ in range(3) for _ in range(batches.micro_batches(0))]
        behind = batches.state_dict()
        assert (behind["batch"], behind["step"]) == (4, 0) and "rows" not in behind
    state.optimizer.masters()["norm.weight"].zero_()  # the weights that drew them are gone
    with batches_of(state, tokenizer, tmp_path / "log", how) as again:
        again.load_state_dict(saved)
        assert again.state_dict() == saved
        found = [next(again) for _ in range(3) for _ in range(again.micro_batches(0))]
        assert len(found) == len(rest) and all(same(a, b) for a, b in zip(found, rest, strict=True))
    other = settings(updates=2, mini_batches=4)
    with (
        batches_of(state, tokenizer, tmp_path / "log", other) as changed,
        pytest.raises(UserError, match="cannot be resumed on other prompts"),
    ):
        changed.load_state_dict(saved)


def test_the_same_round_is_drawn_again_with_the_same_bits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rounds = []
    for _ in range(2):
        with batches_of(state_of(tokenizer), tokenizer, tmp_path / "log", settings()) as batches:
            rounds.append([next(batches) for _ in range(2) for _ in range(batches.micro_batches(0))])
    assert all(same(a, b) for a, b in zip(*rounds, strict=True))
    half = len(rounds[0]) // 2
    assert not torch.equal(rounds[0][0].tokens[:, :96], rounds[0][half].tokens[:, :96]), "the next round is another"


def test_drift_beyond_its_limit_stops_the_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    state = state_of(tokenizer)
    with (
        batches_of(state, tokenizer, tmp_path / "log", settings(max_drift=1e-12)) as batches,
        pytest.raises(UserError, match=r"stage 'rl': before step 1 .*max_drift allows 1e-12"),
    ):
        batches.micro_batches(0)
    dropping = state_of(tokenizer, num_local_experts=4, capacity_factor=0.5)
    with batches_of(dropping, tokenizer, tmp_path / "log", settings()) as batches:
        batches.micro_batches(0)
        assert batches.step_facts().record["drift"] > 1e-3, "experts drop tokens in training alone"


def test_routers_choose_the_same_experts_in_training_as_in_decoding(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of every drawn token, in float32: no choice of the engine has to be repeated in training."""
    state = state_of(tokenizer)
    model: Any = state.model
    with batches_of(state, tokenizer, tmp_path / "log", settings()) as batches:
        row, *_ = [next(batches) for _ in range(batches.micro_batches(0))]
    model.train()
    with torch.no_grad():
        trained = model.features(row.tokens, cu_seqlens=row.cu_seqlens).routings
        assert len(trained) == 2 and row.groups is not None
        for segment in np.flatnonzero(row.groups.numpy() >= 0)[:4]:
            start, stop = row.cu_seqlens[segment : segment + 2].tolist()
            cache = Cache(model.config)
            for place in range(start, stop):
                decoded = model.features(row.tokens[:, place : place + 1], cache=cache).routings
                for one, whole in zip(decoded, trained, strict=True):
                    assert set(one.experts[0].tolist()) == set(whole.experts[place].tolist())


def test_every_pass_takes_each_prompt_once(tokenizer: Tokenizer) -> None:
    prompts = Prompts(Letters(), tokenizer, longest=70, seed=3)
    asked = [prompt.text for place in range(0, 15, 3) for prompt in prompts.at(place, 3)]
    assert [sorted(asked[n : n + 5]) for n in (0, 5, 10)] == [sorted(asked[:5])] * 3 and len(set(asked)) == 5
    assert asked[:5] != asked[5:10]
    again = Prompts(Letters(), tokenizer, longest=70, seed=3)
    assert again.fingerprint == prompts.fingerprint
    assert Prompts(Letters(), tokenizer, longest=70, seed=4).fingerprint != prompts.fingerprint


def test_prompts_of_files_are_read_set_aside_and_graded(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "What is 1 + 1?", "reference": "2"},
        {"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"}], "reference": "4"},
        {"question": "And 3 + 3?", "reference": "6"},
        {"prompt": "What is 1 + 2?"},
        {"text": "no prompt", "reference": "1"},
        {"prompt": "x" * 900, "reference": "1"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*map(json.dumps, rows), "{"]), encoding="utf-8")
    how = RolloutSettings.parse({"prompts": [str(tmp_path / "prompts.jsonl")], "reward": "math"}, "test")
    environment = open_environment(how)
    prompts = Prompts(environment, tokenizer, longest=99, seed=0)
    said = capsys.readouterr().err
    assert len(prompts) == 3 and "1 no reference" in said and "1 longer than 99 tokens" in said
    assert "1 no prompt" in said and "1 not JSON" in said
    for prompt in prompts.at(0, 3):
        assert environment.score(prompt.row, f"It is {prompt.row['reference']}.").reward == 1  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        assert environment.score(prompt.row, "It is 7.").reward == 0  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    with pytest.raises(UserError, match=r"no prompt to begin from .*longer than 3"):
        Prompts(environment, tokenizer, longest=3, seed=0)


def test_environments_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Half:\n    def prompts(self): return []\nNumber = 3\n", encoding="utf-8")
    for name, message in {
        "own.py": r'is "FILE.py:CLASS"',
        f"{tmp_path}/none.py:Half": "does not exist",
        f"{tmp_path}/own.py:Other": "has no class Other",
        f"{tmp_path}/own.py:Number": "has no class Number",
        f"{tmp_path}/own.py:Half": "has no method score",
        "no_such_module:Half": "cannot be imported",
    }.items():
        with pytest.raises(UserError, match=message):
            open_environment(settings(environment=name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["a.jsonl"]}, "brings prompts and rewards of its own"),
        ({"environment": None}, "give prompts"),
        ({"mini_batches": 3}, "must divide prompts_per_step"),
        ({"group_size": 1}, "group_size"),
        ({"algorithm": {"preset": "drgrpo"}}, "did you mean 'dr_grpo'"),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_groups_without_a_signal_are_drawn_again_as_often_as_is_allowed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Some(Letters):
        def score(self, row: Mapping[str, Any], response: str) -> float:
            return len(response) if row["number"] in (1, 4) else 0.5

    for redraws, learned in ((0, 2), (1, 3), (9, 4)):
        state, how = state_of(tokenizer), settings(redraws=redraws, prompts_per_step=4, kept_rollouts=4)
        log = tmp_path / f"{redraws}.jsonl"
        with batches_of(state, tokenizer, log, how, Some()) as batches:
            rows = [next(batches) for _ in range(batches.micro_batches(0))]
            facts, place = batches.step_facts().record, batches.state_dict()["batch"]
        prompts = [json.loads(line)["prompt"] for line in log.read_text().splitlines()]
        assert len(prompts) == 4 and sum(p in ("Is 1 so?", "Is 4 so?") for p in prompts) >= learned - 1
        assert facts["drawn"] == 4 * place and place == {0: 4}.get(redraws, place)
        asked = [
            prompt.row["number"] in (1, 4) for prompt in Prompts(Some(), tokenizer, longest=70, seed=3).at(0, place)
        ]
        assert facts["no_signal"] == pytest.approx(1 - sum(asked) / place)
        measured = torch.cat([row.per_document[ADVANTAGE] for row in rows])
        if redraws == 9:
            assert sum(asked) == 4 and int((measured != 0).sum()) >= 4 * 2


def test_a_group_has_a_signal_where_two_rewards_differ() -> None:
    prompt = Prompt({}, (1,), "")
    for rewards, has in (((0.0, 1.0, None), True), ((1.0, None, 1.0), False), ((None, None), False)):
        group = Group(
            0, [Rollout(prompt, (2,), np.ones(1, bool), np.zeros(1), "", 1, False, False, Reward(r)) for r in rewards]
        )
        assert group.has_signal == has and [math.isnan(r) for r in group.rewards] == [r is None for r in rewards]
