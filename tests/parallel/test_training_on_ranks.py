"""Several optimizer steps on ranks beside one process: in float64 exactly, in bfloat16 within its own noise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import SIGMOID, TWO_LAYERS
from test_exactness import DROPS, build, joined, rows_of

from leyden.parallel import ParallelConfig, Plan, RankGroup, attach
from leyden.train import AdamWConfig, MasterAdamW, Pretrain, TrainState, train_step
from leyden.train.held_out import HeldOut, measure
from leyden.train.muon import MuonConfig

STEPS = 3
ADAMW, MUON = AdamWConfig(), AdamWConfig(muon=MuonConfig())
MICRO_BATCHES = 2


def losses(
    plan: Plan, changes: dict[str, Any], dtype: torch.dtype, config: AdamWConfig = ADAMW
) -> list[tuple[float, float, float]]:
    """(loss, gradient norm, loss on the same rows afterwards) of every step of ``plan``'s ranks, or of one process."""
    model = build(TWO_LAYERS | changes)
    shape = model.config
    if plan.world == 1:
        model.to(dtype)
        state = TrainState(model, MasterAdamW(model, config, shape=shape))
    else:
        mesh, settings = mesh_of(plan), plan.settings
        model.to(dtype if settings.offload_optimizer or dtype == torch.float64 else torch.float32)
        attached = attach(model, mesh, dtype)
        device = torch.device("cpu") if settings.offload_optimizer else None
        optimizer = MasterAdamW(attached.weights, config, device, shape)
        state = TrainState(attached.model, optimizer, RankGroup(mesh))
    # Both read the same rows: those of four data ranks, one after another, are one process's.
    rank, dp = state.rank_group.share
    results = []
    for step in range(STEPS):
        micro_batches = [rows_of(Plan(dp_shard=4), seed=100 * step + n) for n in range(MICRO_BATCHES)]
        own = [joined(rows[4 * rank // dp : 4 * (rank + 1) // dp]) for rows in micro_batches]
        result = train_step(state, own, Pretrain(), lr=3e-3, clip_norm=1.0, expert_bias_rate=0.05)
        unseen = measure(state, HeldOut(every_steps=1, batches=[own], num_bytes=1), Pretrain()).metrics["held_out_loss"]
        results.append((result.loss, result.grad_norm, unseen))
    return results


@pytest.mark.parametrize(
    "plan",
    [
        Plan(dp_shard=2, cp=2, ep=2),
        Plan(pp=2, dp_shard=2, etp=2),
        pytest.param(Plan(dp_replicate=2, tp=2, ep=2), marks=pytest.mark.slow),
        pytest.param(Plan(dp_shard=4, settings=ParallelConfig(offload_optimizer=True)), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_steps_are_those_of_one_process(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    alone = losses(Plan(), DROPS, torch.float64)
    for found in ranks(4, losses, plan, DROPS, torch.float64):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), rtol=1e-6, atol=0)  # masters are float64


@pytest.mark.parametrize(
    "plan",
    [Plan(pp=2, dp_shard=2, ep=2), pytest.param(Plan(tp=2, cp=2, etp=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_biases_move_by_the_load_of_all_ranks(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    """At a rate at which they change the choices of the next step, and with them its loss."""
    changes = DROPS | SIGMOID
    alone = losses(Plan(), changes, torch.float64)
    for found in ranks(4, losses, plan, changes, torch.float64):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_bfloat16_is_as_far_from_float64_as_one_process_is(ranks: Callable[..., list[Any]]) -> None:
    exact = torch.tensor(losses(Plan(), {}, torch.float64))
    alone = torch.tensor(losses(Plan(), {}, torch.bfloat16))
    noise = (alone - exact).abs().max(0).values
    for found in ranks(4, losses, Plan(dp_shard=2, cp=2, ep=2), {}, torch.bfloat16):
        assert ((torch.tensor(found) - exact).abs().max(0).values <= 2 * noise + 1e-3).all()


@pytest.mark.parametrize(
    "plan",
    [
        Plan(dp_shard=2, cp=2, ep=2),
        pytest.param(Plan(pp=2, dp_shard=2, etp=2), marks=pytest.mark.slow),
        pytest.param(Plan(dp_replicate=2, tp=2, ep=2), marks=pytest.mark.slow),
        pytest.param(Plan(dp_shard=4, settings=ParallelConfig(offload_optimizer=True)), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("changes", [{"shared_intermediate_size": 16}], ids=["shared"])
def test_muon_sees_whole_matrices(ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any]) -> None:
    alone = losses(Plan(), DROPS | changes, torch.float64, MUON)
    assert alone != losses(Plan(), DROPS | changes, torch.float64)
    for found in ranks(4, losses, plan, DROPS | changes, torch.float64, MUON):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), rtol=1e-6, atol=0)
