"""Ranks that train adapters of a frozen model find what one process does: loss, and every adapter's gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import FIRST_DENSE
from test_exactness import DROPS, build, check, difference, joined, micro_batches_of, named, named_sums, shape_for

from leyden.model import HybridLM
from leyden.model.lora import LoraConfig, adapter_parameters, add_lora
from leyden.parallel import ParallelConfig, Plan, RankGroup, attach
from leyden.parallel.objective import sums_of_row
from leyden.train import Pretrain

Alone = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def adapted(changes: dict[str, Any]) -> HybridLM:
    """With adapters that are large enough that a wrong line shows."""
    dense = ("dense",) if {"shared_intermediate_size", "mlp_types"} & changes.keys() else ()
    model = add_lora(build(changes), LoraConfig(rank=3, alpha=6, targets=("attention", "experts", *dense))).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in adapter_parameters(model).values():
        parameter.data.copy_(0.25 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def one_process(changes: dict[str, Any], rows: list[Any]) -> Alone:
    model = adapted(changes)
    parts = [sums_of_row(Pretrain(), model, row) for row in rows]
    for sums in parts:
        sums.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == adapter_parameters(model).keys()
    return {name: value.detach() for name, value in named_sums(parts).items()}, gradients


def worst(plan: Plan, changes: dict[str, Any], alone: Alone) -> dict[str, float]:
    mesh = mesh_of(plan)
    attached = attach(adapted(changes), mesh, torch.float64)
    attached.model.train()
    own = [rows[mesh.dp_rank] for rows in micro_batches_of(plan, 7)]
    if plan.pp > 1:
        found = attached.model.run(own, Pretrain())
    else:
        found = [sums_of_row(Pretrain(), attached.model, row) for row in own]
        for sums in found:
            sums.loss.backward()
    here, (there, whole) = named_sums(found), alone
    errors = {name: difference(RankGroup(mesh).sum([here[name]])[0], value) for name, value in there.items()}
    assert all(".lora." in name for name in attached.weights) and not any(".lora." in n for n in attached.frozen)
    assert all(weight.parameter.grad is None for weight in attached.frozen.values())
    gradients = {name: weight.take_gradient(torch.float64) for name, weight in attached.weights.items()}
    attached.weights.sum_gradients(gradients)
    for name, gradient in gradients.items():
        errors[name] = difference(gradient, attached.weights[name].part.cut(whole[name]))
    errors["norm"] = difference(attached.weights.norm(gradients), torch.nn.utils.get_total_norm(whole.values()))
    return errors


PLANS = [
    (Plan(dp_shard=4), DROPS | {"shared_intermediate_size": 12}),
    (Plan(cp=2, tp=2, ep=2, etp=2), DROPS),
    (Plan(pp=2, tp=2), FIRST_DENSE),
    pytest.param(Plan(tp=4), DROPS, marks=pytest.mark.slow),
    pytest.param(Plan(cp=4), {}, marks=pytest.mark.slow),
    pytest.param(Plan(pp=4), DROPS, marks=pytest.mark.slow),
    pytest.param(Plan(dp_shard=4, ep=2, etp=2), DROPS, marks=pytest.mark.slow),
    pytest.param(Plan(dp_replicate=2, dp_shard=2, ep=2), {}, marks=pytest.mark.slow),
    pytest.param(
        Plan(dp_shard=2, cp=2, ep=2, settings=ParallelConfig(activation_checkpointing="full", token_groups=2)),
        DROPS,
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("plan", "changes"), PLANS, ids=named)
def test_four_ranks_are_one(ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any]) -> None:
    changes = shape_for(plan, changes)
    alone = one_process(changes, [joined(rows) for rows in micro_batches_of(plan, 7)])
    check(ranks(4, worst, plan, changes, alone))
