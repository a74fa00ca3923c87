"""Item 4 of the exactness suite: N ranks = 1 rank, for the loss and every gradient, each axis alone and combined.

One process computes a micro-batch of packed rows in float64; the ranks of a plan compute it together. The sums of what
they report, the norm of the gradient, and each rank's part of every gradient must be those of the one process.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import (
    CAPPED,
    COSFORMER2,
    FIRST_DENSE,
    FOUR_LAYERS,
    HGRN2,
    LATENT,
    LING,
    RING,
    RING_LINEAR,
    SALA,
    SIGMOID,
    TWO_LAYERS,
    WINDOWED,
    YARN,
    Row,
    small_model,
)

from leyden.model import HybridLM
from leyden.parallel import ParallelConfig, Plan, RankGroup, attach
from leyden.parallel.objective import Objective, Sums, add_up, sums_of_row
from leyden.parallel.weights import has_load
from leyden.train import Pretrain

MTP_WEIGHT = 0.4
"""Of the losses of modules for multi-token prediction, in models that have any."""

LOSSES = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.01, "z_loss_coef": 0.01}


def build(changes: dict[str, Any]) -> HybridLM:
    """A model in which every loss counts."""
    return small_model(seed=5, **{**FOUR_LAYERS, **LOSSES, **changes})


def shape_for(plan: Plan, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, with two layers where the stages of ``plan`` do not need more and the changes name none."""
    return changes if plan.num_stages > 2 or {"layer_types", "mlp_types"} & changes.keys() else TWO_LAYERS | changes


def rows_of(plan: Plan, seed: int) -> list[Row]:
    """One packed row a data rank: random documents, a third of the labels hidden; context ranks' parts are unequal.

    Every document begins with another token: two that began alike would tie for an expert, and whether a tie is one
    depends on the last bit.
    """
    length = 47 // plan.tp * plan.tp
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(plan.dp):
        tokens = torch.randint(0, 101, (1, length), generator=generator)
        labels = torch.randint(0, 101, (1, length), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
        cuts = torch.randperm(length - 1, generator=generator)[: int(torch.randint(0, 5, (), generator=generator))] + 1
        bounds = torch.cat([torch.tensor([0]), cuts.sort().values, torch.tensor([length])])
        tokens[0, bounds[:-1]] = 5 * row + torch.arange(len(bounds) - 1)
        rows.append(Row(tokens, labels, bounds.int()))
    return rows


def joined(rows: list[Row]) -> Row:
    """The rows of all data ranks as one."""
    length = rows[0].tokens.shape[1]
    starts = [row.cu_seqlens[:-1] + length * index for index, row in enumerate(rows)]
    bounds = torch.cat([*starts, torch.tensor([length * len(rows)], dtype=torch.int32)])
    return Row(torch.cat([r.tokens for r in rows], 1), torch.cat([r.labels for r in rows], 1), bounds)


Alone = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""The sums and the gradients of one process."""


def one_process(
    objective: Objective,
    changes: dict[str, Any],
    whole_rows: list[Any],
    build: Callable[[dict[str, Any]], HybridLM] = build,
) -> Alone:
    """What one process makes of micro-batches, each the rows of all data ranks as one, with the model of ``build``."""
    model = build(changes)
    parts = [sums_of_row(objective, model, row, mtp_weight=MTP_WEIGHT) for row in whole_rows]
    for sums in parts:
        sums.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in named_sums(parts).items()}, gradients


def micro_batches_of(plan: Plan, seed: int) -> list[list[Row]]:
    """Of each, the row of every data rank."""
    return [rows_of(plan, seed + n) for n in range(2 * plan.pp)]


def expected(plan: Plan, changes: dict[str, Any], seed: int) -> Alone:
    """One process in pre-training, computed once for all ranks."""
    return one_process(Pretrain(), changes, [joined(rows) for rows in micro_batches_of(plan, seed)])


def worst(plan: Plan, changes: dict[str, Any], seed: int, alone: Alone) -> dict[str, float]:
    """The largest differences between this plan's ranks and one process in pre-training."""
    return differences(Pretrain(), plan, changes, micro_batches_of(plan, seed), alone)


def differences(
    objective: Objective,
    plan: Plan,
    changes: dict[str, Any],
    micro_batches: list[list[Any]],
    alone: Alone,
    build: Callable[[dict[str, Any]], HybridLM] = build,
) -> dict[str, float]:
    """The largest ones between this plan's ranks and one process, relative to the largest value there.

    Args:
        objective: what is minimised.
        plan, changes: of the ranks and of the model.
        micro_batches: of each, the row of every data rank.
        alone: what one process makes of the same.
        build: makes the model of the changes.
    """
    mesh = mesh_of(plan)
    attached = attach(build(changes), mesh, torch.float64)
    attached.model.train()
    own = [rows[mesh.dp_rank] for rows in micro_batches]
    if plan.pp > 1:
        found = attached.model.run(own, objective)
    else:
        found = [sums_of_row(objective, attached.model, row, mtp_weight=MTP_WEIGHT) for row in own]
        for sums in found:
            sums.loss.backward()
    errors, here, (there, whole) = {}, named_sums(found), alone
    assert list(here) == list(there)
    for name, value in there.items():
        (total,) = RankGroup(mesh).sum([here[name]])
        errors[name] = difference(total, value)
    gradients = {name: weight.take_gradient(torch.float64) for name, weight in attached.weights.items()}
    attached.weights.sum_gradients(gradients)
    for name, gradient in gradients.items():
        if name in whole:
            errors[name] = difference(gradient, attached.weights[name].part.cut(whole[name]))
        else:  # one process has no gradient of it
            assert not gradient.any(), name
    norm = torch.nn.utils.get_total_norm([gradient for name, gradient in whole.items() if not has_load(name)])
    errors["norm"] = difference(attached.weights.norm(gradients), norm)
    return errors


def named_sums(parts: list[Sums]) -> dict[str, torch.Tensor]:
    """Loss, weight and metrics over all micro-batches."""
    total = add_up(parts)
    return {"minimised": total.loss.double(), "weight": total.weight.double(), **total.metrics}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest value expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


DROPS = {"capacity_factor": 0.6}
AFTER = {"postnorm": False, "norm_placement": "after"}
PARALLEL = {"postnorm": False, "parallel_block": True}
PER_DOCUMENT = {"router_aux_loss": "sequence"}
MTP = {"num_nextn_predict_layers": 2, "nextn_layer_type": "linear_attention"}
EARLIEST = {"capacity_factor": 0.6, "token_drop": "position"}
ALONE = [
    pytest.param(Plan(dp_shard=4), {}, marks=pytest.mark.slow),
    (Plan(dp_shard=4), DROPS | {"shared_intermediate_size": 12}),
    pytest.param(Plan(dp_replicate=2, dp_shard=2), {"tie_word_embeddings": True}, marks=pytest.mark.slow),
    (Plan(cp=4), {}),
    (Plan(tp=4), DROPS),
    (Plan(tp=4), {"num_local_experts": 0, "tie_word_embeddings": True}),
    pytest.param(Plan(pp=4), DROPS | {"router_aux_loss": "switch"}, marks=pytest.mark.slow),
    (Plan(dp_shard=4, ep=4), {}),
    (Plan(dp_shard=4, etp=4), EARLIEST),
]
COMBINED = [
    (Plan(cp=2, tp=2), WINDOWED | YARN),
    pytest.param(Plan(cp=2, tp=2), COSFORMER2, marks=pytest.mark.slow),
    pytest.param(Plan(cp=4), HGRN2, marks=pytest.mark.slow),
    (Plan(cp=2, tp=2), HGRN2),
    (Plan(cp=2, tp=2), LATENT),
    pytest.param(Plan(tp=2, dp_shard=2, ep=2), LATENT | {"q_lora_rank": None}, marks=pytest.mark.slow),
    (Plan(cp=2, tp=2), RING),
    pytest.param(Plan(tp=4), RING, marks=pytest.mark.slow),
    pytest.param(Plan(dp_shard=4), RING, marks=pytest.mark.slow),
    pytest.param(Plan(pp=2, tp=2), RING | {"layer_types": FOUR_LAYERS["layer_types"]}, marks=pytest.mark.slow),
    (Plan(cp=2, tp=2, ep=2), LING),
    *(
        pytest.param(plan, family, marks=pytest.mark.slow)
        for family in (LING, RING_LINEAR)
        for plan in (
            Plan(tp=4),
            Plan(cp=4),
            Plan(dp_shard=4),
            Plan(dp_shard=4, ep=4),
            Plan(dp_shard=2, tp=2, ep=2),
            Plan(dp_shard=2, cp=2, ep=2),
            Plan(pp=2, tp=2),
        )
    ),
    pytest.param(Plan(cp=2, tp=2, ep=2), RING_LINEAR, marks=pytest.mark.slow),
    *(
        pytest.param(plan, SALA, marks=pytest.mark.slow)
        for plan in (Plan(tp=4), Plan(cp=4), Plan(dp_shard=4), Plan(cp=2, tp=2), Plan(pp=2, tp=2))
    ),
    (Plan(cp=2, tp=2, ep=2), MTP | DROPS),
    pytest.param(Plan(dp_shard=2, cp=2), {"num_nextn_predict_layers": 2}, marks=pytest.mark.slow),
    pytest.param(Plan(cp=4), {"num_nextn_predict_layers": 3}, marks=pytest.mark.slow),
    pytest.param(Plan(tp=4), MTP | {"nextn_mlp_type": "dense", "tie_word_embeddings": True}, marks=pytest.mark.slow),
    pytest.param(Plan(dp_replicate=2, dp_shard=2, etp=2), MTP, marks=pytest.mark.slow),
    (Plan(tp=2, dp_shard=2, ep=2), DROPS | FIRST_DENSE),
    (Plan(tp=2, dp_shard=2, ep=2), DROPS | SIGMOID | PER_DOCUMENT),
    pytest.param(Plan(cp=2, dp_shard=2, etp=2), SIGMOID | FIRST_DENSE | PER_DOCUMENT, marks=pytest.mark.slow),
    pytest.param(Plan(pp=2, cp=2), SIGMOID | DROPS | PER_DOCUMENT, marks=pytest.mark.slow),
    (Plan(cp=2, tp=2), AFTER),
    (Plan(cp=2, tp=2), CAPPED),
    pytest.param(Plan(pp=2, dp_shard=2), CAPPED, marks=pytest.mark.slow),
    pytest.param(Plan(cp=2, tp=2), PARALLEL | FIRST_DENSE, marks=pytest.mark.slow),
    pytest.param(Plan(pp=2, tp=2), PARALLEL, marks=pytest.mark.slow),
    (Plan(pp=4), DROPS | FIRST_DENSE | {"router_aux_loss": "switch"}),
    pytest.param(Plan(pp=2, cp=2), WINDOWED | YARN, marks=pytest.mark.slow),
    pytest.param(Plan(dp_shard=2, cp=2, ep=2), {}, marks=pytest.mark.slow),
    (Plan(dp_shard=2, cp=2, ep=2), DROPS),
    pytest.param(Plan(dp_shard=4, ep=2, etp=2), EARLIEST, marks=pytest.mark.slow),
    (Plan(pp=2, tp=2), {}),
    (Plan(dp_shard=2, cp=2, etp=2), DROPS),
    (Plan(cp=2, tp=2, ep=2, etp=2), DROPS),
]
SETTINGS = [
    (Plan(dp_shard=2, cp=2, ep=2, settings=ParallelConfig(token_groups=3)), DROPS),
    (Plan(cp=2, tp=2, ep=2, settings=ParallelConfig(activation_checkpointing="full", token_groups=2)), DROPS),
    (Plan(dp_shard=2, tp=2, settings=ParallelConfig(activation_checkpointing="selective")), {}),
    pytest.param(
        Plan(dp_shard=2, tp=2, ep=2, settings=ParallelConfig(activation_checkpointing="full")),
        MTP,
        marks=pytest.mark.slow,
    ),
    (Plan(pp=2, cp=2, settings=ParallelConfig(pipeline_schedule="interleaved", stages_per_rank=2)), {}),
    (Plan(dp_shard=4, settings=ParallelConfig(reshard_after_forward=False)), {}),
]


def named(value: Any) -> str:
    """The id of a plan or of what is changed in the model."""
    if isinstance(value, dict):
        return " ".join(map(str, value.values())) or "dropless"
    changed = value.settings.model_dump(exclude_defaults=True)
    return " ".join([str(value), *(f"{key}={setting}" for key, setting in changed.items())])


@pytest.mark.parametrize(("plan", "changes"), [*ALONE, *COMBINED, *SETTINGS], ids=named)
def test_four_ranks_are_one(ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any]) -> None:
    changes = shape_for(plan, changes)
    check(ranks(4, worst, plan, changes, 7, expected(plan, changes, 7)))


def check(found: list[dict[str, float]]) -> None:
    for errors in found:
        assert max(errors.pop("expert_load"), errors.pop("dropped")) < 1e-6  # reported in float32
        assert max(errors.values()) < 1e-10, {name: error for name, error in errors.items() if not error < 1e-10}


EIGHT = [
    (Plan(dp_shard=2, cp=2, tp=2, ep=2, etp=2), DROPS),
    (Plan(pp=2, cp=2, tp=2, ep=2), {}),
    (Plan(pp=2, dp_shard=2, cp=2, etp=2), DROPS),
    (Plan(dp_replicate=2, dp_shard=2, cp=2, ep=4), DROPS),
    (Plan(cp=8), {}),
    (Plan(dp_shard=8, ep=4, etp=2, settings=ParallelConfig(token_groups=3)), DROPS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "changes"), EIGHT, ids=named)
def test_eight_ranks_are_one(ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any]) -> None:
    check(ranks(8, worst, plan, changes, 11, expected(plan, changes, 11)))
