"""Objectives that are not pre-training: equal to whole logits in one process, and to one process on every axis."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_process import assert_close
from test_exactness import Alone, build, check, differences, named, one_process, shape_for
from two_objectives import (
    ClippedPolicyGradient,
    completions,
    conversations,
    preferences,
    rollouts,
    segments,
)

from leyden.align.chats.batches import ChatBatches, Normalise, fit_chats
from leyden.align.policy import Algorithm, PolicyGradient, ValueLoss
from leyden.align.preference import Preference, PreferenceSettings
from leyden.align.process_rewards import LabelledSteps
from leyden.align.reward_models import RewardModelSettings, ScoredPairs
from leyden.align.sft import Sft
from leyden.core.transfers import sent
from leyden.data import Batch
from leyden.ops import IGNORE_INDEX
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.objective import sums_of_row
from leyden.train import MasterAdamW, Sums, TrainState, train_step

PAIRS = PreferenceSettings(loss="dpo_norm", beta=3.0, nll_weight=0.2)
OBJECTIVES = {"pairs": (Preference(PAIRS), preferences), "policy": (ClippedPolicyGradient(), rollouts)}


def chats(seed: int, seq_len: int, sequences: int) -> ChatBatches:
    """Answers of which the longest are cut, every one of which counts alike."""
    fitting = fit_chats(conversations(seed, groups=40)[0], 9, "cut")
    assert fitting.num_cut
    return ChatBatches(fitting, "chats", seq_len=seq_len, batch_tokens=seq_len * sequences, seed=seed)


SEQUENCES = Algorithm(preset="minimax", ratio="sequence", clip_low=0.9, clip_high=1.0)
"""Ratios of sequences, which take sums over the ranks of a row, with everything else that reads values of tokens."""

ON_RANKS: dict[str, tuple[Any, Callable[..., Any]]] = {
    **OBJECTIVES,
    "sft": (Sft("chats"), chats),
    "rl": (PolicyGradient(SEQUENCES, temperature=0.7), completions),
    "reward": (ScoredPairs(RewardModelSettings(score_margin=0.3, center_weight=0.05)), preferences),
    "process_reward": (LabelledSteps(), preferences),
    "ppo": (PolicyGradient(Algorithm(preset="ppo")), completions),
    "critic": (ValueLoss(0.5), completions),
}


def _log_probabilities(model: Any, batch: Batch) -> list[tuple[torch.Tensor, slice]]:
    """Of each document's labels, from whole logits of the document alone; and where these labels are in the row."""
    found = []
    for place in segments(batch):
        labels = batch.labels[0, place]
        learned = labels >= 0
        logits = model.lm_head(model.features(batch.tokens[:, place]).hidden)[0]
        found.append((logits.log_softmax(-1)[learned].gather(1, labels[learned][:, None])[:, 0], learned))
    return found


def _preference_by_hand(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """A pair at a time, in plain arithmetic."""
    answers = [values for values, _ in _log_probabilities(model, batch)]
    references = batch.per_document["reference"][batch.groups >= 0].tolist()
    loss, sums = 0.0, dict.fromkeys(("weight", *Preference.metrics), 0.0)
    for index in range(0, len(answers), 2):
        means = [answers[index + k].mean() for k in (0, 1)]
        rewards = [3 * (means[k] - references[index + k] / len(answers[index + k])) for k in (0, 1)]
        margin = rewards[0] - rewards[1]
        loss = loss - (1 / (1 + (-margin).exp())).log() - 0.2 * means[0]
        sums["weight"] += 1
        sums["accuracy"] += margin.item() > 0
        sums["ranking_accuracy"] += means[0].item() > means[1].item()
        sums["margin"] += margin.item()
        for k, side in enumerate(("chosen", "rejected")):
            sums[f"{side}_reward"] += rewards[k].item()
            sums[f"{side}_logp"] += answers[index + k].sum().item()
    return loss, sums


def _policy_by_hand(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """A token at a time, in plain arithmetic."""
    loss, sums = 0.0, {"weight": 0.0, "clipped": 0.0, "kl": 0.0}
    for place, (values, learned) in zip(segments(batch), _log_probabilities(model, batch), strict=True):
        given = {name: x[0, place][learned].tolist() for name, x in batch.per_token.items()}
        for k, value in enumerate(values):
            weight, advantage = given["weight"][k], given["advantage"][k]
            ratio = (value - given["sampled"][k]).exp()
            inside = min(max(ratio.item(), 0.8), 1.2)
            is_clipped = inside * advantage < ratio.item() * advantage
            loss = loss - weight * (inside * advantage if is_clipped else ratio * advantage)
            sums["weight"] += weight
            sums["clipped"] += weight * is_clipped
            sums["kl"] += weight * (ratio.item() - 1 - math.log(ratio.item()))
    return loss, sums


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_process_is_plain_arithmetic_on_whole_logits(name: str) -> None:
    objective, batches_of = OBJECTIVES[name]
    batch = batches_of(seed=2, seq_len=37, sequences=3).batch(0)
    model, twin = build({}), build({})
    found = objective.sums(model, model.features(batch.tokens, cu_seqlens=batch.cu_seqlens), batch)
    loss, sums = (_preference_by_hand if name == "pairs" else _policy_by_hand)(twin, batch)
    assert_close(found.loss, loss, "the loss")
    given = {"weight": found.weight, **found.metrics}
    assert given.keys() == sums.keys()
    for metric, value in sums.items():
        assert given[metric].item() == pytest.approx(value, rel=1e-10)
    share = given["accuracy" if name == "pairs" else "clipped"] / given["weight"]
    assert 0.1 < share < 0.9, "the rows have both cases"
    found.loss.backward()
    loss.backward()
    for parameter, other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            assert_close(parameter[1].grad, other.grad, f"the gradient of {parameter[0]}")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_minimise_it_and_say_its_metrics(name: str) -> None:
    objective, batches_of = OBJECTIVES[name]
    batches, model = batches_of(seed=2, seq_len=37, sequences=2), build({"num_local_experts": 0})
    state = TrainState(model, MasterAdamW(model))
    results = [train_step(state, [batches.batch(0)], objective, lr=3e-3, clip_norm=1.0) for _ in range(6)]
    assert results[-1].loss < results[0].loss and not any(result.skipped for result in results)
    assert all({"loss", *objective.metrics} <= result.metrics.keys() for result in results)
    if name == "pairs":
        assert results[-1].metrics["accuracy"] > results[0].metrics["accuracy"]


def test_the_example_of_the_page_on_objectives() -> None:
    """The class in the page's first block of code, run as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "adding-an-objective.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"sent": sent, "IGNORE_INDEX": IGNORE_INDEX, "Sums": Sums}
    exec(page.split("```python\n")[1].split("```")[0], names)
    batch, model = rollouts(seed=2, seq_len=37, sequences=2).batch(0), build({})
    sums = sums_of_row(names["WeightedCrossEntropy"](), model, batch)
    expected = -sum(
        (batch.per_token["weight"][0, place][learned] * values).sum()
        for place, (values, learned) in zip(segments(batch), _log_probabilities(model, batch), strict=True)
    )
    assert sums.metrics["loss"].item() < sums.loss.item(), "the losses of the routers are added"
    assert_close(sums.metrics["loss"], expected, "the loss")
    assert sums.metrics["entropy_bound"] > expected


@pytest.mark.parametrize("normalise", ["tokens", "chats"])
def test_fine_tuning_is_plain_arithmetic_on_whole_logits(normalise: Normalise) -> None:
    fitting = fit_chats(conversations(3, groups=20)[0], 9, "cut")
    batch = ChatBatches(fitting, normalise, seq_len=30, batch_tokens=60, seed=0).batch(0)
    model, twin, objective = build({"z_loss_coef": 0.01}), build({"z_loss_coef": 0.01}), Sft(normalise)
    found = objective.sums(model, model.features(batch.tokens, cu_seqlens=batch.cu_seqlens), batch)
    values = [values for values, _ in _log_probabilities(twin, batch)]
    if normalise == "tokens":
        expected, weight = -torch.cat(values).sum(), sum(map(len, values))
    else:
        expected, weight = -torch.stack([one.mean() for one in values]).sum(), len(values)
    assert_close(found.metrics["loss"], expected, "the loss")
    assert found.weight.item() == pytest.approx(weight, rel=1e-6)
    assert found.loss > found.metrics["loss"], "the z-loss is added"
    assert objective.counts == {"tokens": "labels", "chats": "chats"}[normalise]


def batches_for(plan: Plan, name: str) -> Any:
    return ON_RANKS[name][1](seed=4, seq_len=47 // plan.tp * plan.tp, sequences=plan.dp)


def shape_of(plan: Plan, name: str) -> dict[str, Any]:
    """Of the model of an objective."""
    return shape_for(plan, {"score_head": True} if name in ("reward", "process_reward", "critic") else {})


def worst(plan: Plan, alone: dict[str, Alone]) -> dict[str, dict[str, float]]:
    """The largest differences between this plan's ranks and one process, of both objectives."""
    found = {}
    for name, (objective, _) in ON_RANKS.items():
        batches = batches_for(plan, name)
        micro_batches = [[batches.share(n, rank, plan.dp) for rank in range(plan.dp)] for n in range(2 * plan.pp)]
        found[name] = differences(objective, plan, shape_of(plan, name), micro_batches, alone[name])
    return found


PLANS = [
    pytest.param(Plan(dp_replicate=2, dp_shard=2), marks=pytest.mark.slow),
    pytest.param(Plan(cp=4), marks=pytest.mark.slow),
    pytest.param(Plan(tp=4), marks=pytest.mark.slow),
    pytest.param(Plan(pp=4), marks=pytest.mark.slow),
    pytest.param(Plan(dp_shard=4, ep=4), marks=pytest.mark.slow),
    Plan(cp=2, tp=2, ep=2),
    pytest.param(
        Plan(pp=2, cp=2, settings=ParallelConfig(pipeline_schedule="interleaved", stages_per_rank=2)),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("plan", PLANS, ids=named)
def test_ranks_are_one_process(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    alone = {
        name: one_process(
            objective, shape_of(plan, name), [batches_for(plan, name).batch(n) for n in range(2 * plan.pp)]
        )
        for name, (objective, _) in ON_RANKS.items()
    }
    for found in ranks(4, worst, plan, alone):
        for name in ON_RANKS:
            check([found[name]])
