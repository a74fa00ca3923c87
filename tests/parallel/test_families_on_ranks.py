"""Whole models of published families on four ranks: loss and gradients are those of one process."""

from collections.abc import Callable
from typing import Any

import pytest
import test_layouts_ling
import test_layouts_sala
import torch
from gloo_ranks import mesh_of
from test_exactness import LOSSES, Alone, check, differences, joined, micro_batches_of, named, one_process

from leyden.model import HybridLM, ModelConfig
from leyden.parallel import ParallelConfig, Plan
from leyden.train import Pretrain

WORDS = {"vocab_size": 102}
"""As many as the rows of the other tests of ranks use, and a number that two tensor ranks can divide."""
LING = test_layouts_ling.shape(**WORDS, num_hidden_layers=4, layer_group_size=2, num_experts_per_tok=2)
SALA = test_layouts_sala.shape(test_layouts_sala.SMALL_SALA, **WORDS)
HYPENET = test_layouts_sala.shape(test_layouts_sala.SMALL_HYPENET, **WORDS)
SHAPES = {"Ling": LING, "MiniCPM-SALA": SALA, "HypeNet": HYPENET}
FULL = ParallelConfig(activation_checkpointing="full")


def build(changes: dict[str, Any]) -> HybridLM:
    """The model of a family in float64, with weights that are large enough that a wrong line shows."""
    model = HybridLM(ModelConfig.parse(changes, "test model"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
    return model.double().train()


def worst(plan: Plan, changes: dict[str, Any], alone: Alone) -> dict[str, float]:
    mesh_of(plan)
    return differences(Pretrain(), plan, changes, micro_batches_of(plan, 7), alone, build=build)


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        ("Ling", Plan(tp=2, dp_shard=2, ep=2)),
        pytest.param("Ling", Plan(cp=2, tp=2), marks=pytest.mark.slow),
        pytest.param("Ling", Plan(dp_shard=2, cp=2, ep=2), marks=pytest.mark.slow),
        pytest.param("Ling", Plan(pp=2, tp=2, settings=FULL), marks=pytest.mark.slow),
        pytest.param("Ling", Plan(dp_shard=4, ep=2, etp=2), marks=pytest.mark.slow),
        ("MiniCPM-SALA", Plan(cp=2, tp=2)),
        pytest.param("MiniCPM-SALA", Plan(dp_shard=2, cp=2), marks=pytest.mark.slow),
        pytest.param("HypeNet", Plan(cp=2, tp=2), marks=pytest.mark.slow),
        pytest.param("HypeNet", Plan(pp=2, dp_shard=2), marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_four_ranks_are_one(ranks: Callable[..., list[Any]], family: str, plan: Plan) -> None:
    losses = LOSSES if SHAPES[family].num_local_experts else {"z_loss_coef": LOSSES["z_loss_coef"]}
    changes = SHAPES[family].model_dump() | losses
    alone = one_process(Pretrain(), changes, [joined(rows) for rows in micro_batches_of(plan, 7)], build)
    check(ranks(4, worst, plan, changes, alone))
