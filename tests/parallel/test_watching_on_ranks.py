"""What is measured while ranks train: the noise of the gradient, parts of held-out documents, the whole model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import TWO_LAYERS
from test_exactness import build, joined, rows_of

from leyden.data.loader.held_out import HeldOutPart
from leyden.data.loader.packing import Batch
from leyden.parallel import Plan, RankGroup, attach
from leyden.train import AdamWConfig, MasterAdamW, Pretrain, TrainState, train_step
from leyden.train.health import RunHealth
from leyden.train.held_out import HeldOut, measure
from leyden.train.spikes import SpikeSettings
from leyden.train.steps import FitSettings
from leyden.train.whole import whole_model

PARTS = [HeldOutPart("a", 0, 50, 100), HeldOutPart("b", 0, 60, 100)]
MICRO_BATCHES = 3
DATA_PLANS = [Plan(dp_shard=2, cp=2, ep=2), pytest.param(Plan(dp_replicate=2, tp=2, etp=2), marks=pytest.mark.slow)]


def _state(plan: Plan) -> TrainState:
    model = build(TWO_LAYERS)
    if plan.world == 1:
        return TrainState(model, MasterAdamW(model, AdamWConfig()))
    mesh = mesh_of(plan)
    attached = attach(model, mesh, torch.float64)
    return TrainState(attached.model, MasterAdamW(attached.weights, AdamWConfig()), RankGroup(mesh))


def _rows(state: TrainState) -> list[Any]:
    """Of four data ranks, one after another, are one process's."""
    rank, dp = state.rank_group.share
    return [
        joined(rows_of(Plan(dp_shard=4), seed=n)[4 * rank // dp : 4 * (rank + 1) // dp]) for n in range(MICRO_BATCHES)
    ]


def noise(plan: Plan) -> tuple[float, ...]:
    state = _state(plan)
    result = train_step(state, _rows(state), Pretrain(), lr=3e-3, clip_norm=1.0, measure_noise=True)
    assert result.noise is not None
    return result.noise.trace, result.noise.square, result.grad_norm


def parts(plan: Plan) -> tuple[float, ...]:
    state = _state(plan)
    batches = []
    for row in _rows(state):
        numbers = torch.arange(len(row.cu_seqlens) - 1) % 2
        batches.append(replace(Batch(row.tokens, row.labels, row.cu_seqlens), per_document={"part": numbers}))
    found = measure(state, HeldOut(1, [batches], 1, PARTS), Pretrain())
    return found.metrics["held_out_loss"], *found.nats


def same_weights(plan: Plan) -> list[str]:
    """The names of weights that are others in the whole copy than in the model of one process."""
    state, alone = _state(plan), _state(Plan())
    copy, expected = whole_model(state, torch.float64).state_dict(), alone.model.state_dict()
    assert copy.keys() == expected.keys()
    return [name for name in copy if not torch.equal(copy[name], expected[name])]


def batch_after_one_rank_asks(plan: Plan) -> int:
    """Times the stated batch after a step of which the second rank alone finds that the batch may double."""
    state = _state(plan)
    health = RunHealth.of(state, SpikeSettings())
    settings = FitSettings(
        stage="one",
        total_steps=9,
        max_batch_factor=4,
        checkpoint_steps=9,
        flops_per_token=1.0,
        peak_flops_per_second=1.0,
        how_to_resume="",
    )
    assert state.rank_group.mesh is not None
    health.critical_batch.see = lambda *_: state.rank_group.rank == 1
    result = train_step(state, _rows(state), Pretrain(), lr=3e-3, clip_norm=1.0, measure_noise=True)
    line = health.noise_of(state, result, settings)
    assert line["batch_factor"] == health.critical_batch.factor
    return health.critical_batch.factor


def test_all_ranks_double_the_batch_together(ranks: Callable[..., list[Any]]) -> None:
    assert ranks(4, batch_after_one_rank_asks, Plan(dp_shard=4)) == [2] * 4


@pytest.mark.parametrize("plan", DATA_PLANS, ids=str)
def test_the_noise_is_that_of_one_process(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    alone = noise(Plan())
    for found in ranks(4, noise, plan):
        assert found == pytest.approx(alone, rel=1e-7)


@pytest.mark.parametrize("plan", [*DATA_PLANS, Plan(pp=2, dp_shard=2, etp=2)], ids=str)
def test_parts_are_those_of_one_process(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    # Ranks of other shares number their documents otherwise, so that both parts together are compared.
    alone = parts(Plan())
    for found in ranks(4, parts, plan):
        assert found[0] == pytest.approx(alone[0], rel=1e-9)
        assert sum(found[1:]) == pytest.approx(sum(alone[1:]), rel=1e-9)


@pytest.mark.parametrize("plan", [*DATA_PLANS, Plan(pp=2, dp_shard=2, etp=2)], ids=str)
def test_the_whole_model_is_on_every_rank(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    assert ranks(4, same_weights, plan) == [[]] * 4
