"""Products in 8-bit tiles on data ranks and pipeline stages: those of one process with the same micro-batches."""

from collections.abc import Callable
from typing import Any

import pytest
from gloo_ranks import mesh_of
from one_process import FOUR_LAYERS, SIGMOID, TWO_LAYERS
from test_exactness import build, differences, micro_batches_of, named, one_process

from leyden.model import HybridLM
from leyden.model.fp8 import use_fp8
from leyden.parallel import ParallelConfig, Plan
from leyden.train import Pretrain

APART: dict[str, Any] = {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0, "router_group_loss_coef": 0.0}
"""Losses of routers are of all ranks' tokens together, which one process with a row at a time has not."""


def in_tiles(changes: dict[str, Any]) -> HybridLM:
    model = build(changes)
    use_fp8(model)
    return model


def worst(plan: Plan, changes: dict[str, Any], alone: Any) -> dict[str, float]:
    mesh_of(plan)
    return differences(Pretrain(), plan, changes, micro_batches_of(plan, 7), alone, build=in_tiles)


@pytest.mark.parametrize(
    ("plan", "changes"),
    [
        (Plan(dp_shard=4), TWO_LAYERS),
        pytest.param(Plan(pp=2, dp_shard=2), SIGMOID, marks=pytest.mark.slow),
        pytest.param(Plan(dp_replicate=2, dp_shard=2), TWO_LAYERS | SIGMOID, marks=pytest.mark.slow),
        pytest.param(
            Plan(pp=2, dp_shard=2, settings=ParallelConfig(activation_checkpointing="full")), {}, marks=pytest.mark.slow
        ),
    ],
    ids=named,
)
def test_tiles_of_ranks_are_those_of_one_process(
    ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any]
) -> None:
    changes = FOUR_LAYERS | changes | APART
    rows = [row for of_ranks in micro_batches_of(plan, 7) for row in of_ranks]
    alone = one_process(Pretrain(), changes, rows, build=in_tiles)
    for errors in ranks(4, worst, plan, changes, alone):
        del errors["expert_load"]  # a share of all ranks' tokens too
        assert max(errors.values()) < 1e-10, {name: error for name, error in errors.items() if not error < 1e-10}
