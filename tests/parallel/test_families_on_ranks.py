"""Whole models of published families on four ranks: loss and gradients are those of one process."""

from collections.abc import Callable
from typing import Any

import pytest
import test_layouts_ling
import test_layouts_ring_linear
import test_layouts_sala
import torch
from gloo_ranks import mesh_of
from test_exactness import LOSSES, Alone, check, differences, joined, micro_batches_of, named, one_process

from leyden.model import HybridLM, ModelConfig
from leyden.parallel import ParallelConfig, Plan
from leyden.train import Pretrain

WORDS = {"vocab_size": 101}
"""As many as the rows of the other tests of ranks have."""
FOUR = {"num_hidden_layers": 4, "layer_group_size": 2, "group_norm_size": 4, "moe_intermediate_size": 12}
"""Layers, norms and experts that four ranks can divide."""
SHAPES = {
    "Ling": test_layouts_ling.shape(**WORDS, **FOUR),
    "Ring-linear": test_layouts_ring_linear.shape(
        **WORDS, **FOUR, moe_shared_expert_intermediate_size=12, num_key_value_heads=4
    ),
    "MiniCPM-SALA": test_layouts_sala.shape(test_layouts_sala.SMALL_SALA, **WORDS, num_key_value_heads=4),
    "HypeNet": test_layouts_sala.shape(test_layouts_sala.SMALL_HYPENET, **WORDS),
}
PLANS = {
    "Ling": [
        Plan(cp=2, tp=2, ep=2),
        Plan(tp=4),
        Plan(cp=4),
        Plan(dp_shard=4),
        Plan(dp_shard=4, ep=4),
        Plan(dp_shard=4, ep=2, etp=2),
        Plan(dp_shard=2, tp=2, ep=2),
        Plan(dp_shard=2, cp=2, ep=2),
        Plan(pp=2, tp=2, settings=ParallelConfig(activation_checkpointing="full")),
    ],
    "MiniCPM-SALA": [
        Plan(cp=2, tp=2),
        Plan(tp=4),
        Plan(cp=4),
        Plan(dp_shard=4),
        Plan(pp=2, tp=2),
        Plan(pp=2, dp_shard=2),
    ],
    "HypeNet": [Plan(cp=2, tp=2), Plan(dp_shard=2, cp=2)],  # its tied embeddings allow no pipeline
}
PLANS["Ring-linear"] = PLANS["Ling"]
FAST = {"Ling": PLANS["Ling"][0], "MiniCPM-SALA": PLANS["MiniCPM-SALA"][0]}
"""The others are slow tests."""


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
        pytest.param(family, plan, marks=() if FAST.get(family) is plan else pytest.mark.slow)
        for family, plans in PLANS.items()
        for plan in plans
    ],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_four_ranks_are_one(ranks: Callable[..., list[Any]], family: str, plan: Plan) -> None:
    losses = LOSSES if SHAPES[family].num_local_experts else {"z_loss_coef": LOSSES["z_loss_coef"]}
    changes = SHAPES[family].model_dump() | losses
    alone = one_process(Pretrain(), changes, [joined(rows) for rows in micro_batches_of(plan, 7)], build)
    check(ranks(4, worst, plan, changes, alone))
