"""A model dealt to pipeline stages against the same model in one process, in float64."""

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import Row, assert_close, random_row, small_model

from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.parallel import ParallelConfig, Plan, make_plan
from leyden.parallel.pipeline import Pipeline, StageModel, boundary
from leyden.train.objective import LossSums, Pretrain

LAYERS = {
    "num_hidden_layers": 5,
    "layer_types": ("linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"),
}
LOSSES = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.02, "z_loss_coef": 0.001, "capacity_factor": 0.8}
DOCUMENTS = [[7, 1, 15], [23], [3, 3, 0, 17], [11, 12], [1, 1, 21], [20, 3]]
INTERLEAVED = ParallelConfig(pp=2, pipeline_schedule="interleaved", stages_per_rank=2)

Ranks = Callable[..., list[Any]]


def _rows(count: int, first: int = 0) -> list[Row]:
    return [random_row(DOCUMENTS[(first + i) % len(DOCUMENTS)], seed=first + i) for i in range(count)]


def _total(parts: list[LossSums]) -> dict[str, torch.Tensor]:
    return {
        f.name: torch.stack([getattr(part, f.name).detach().double() for part in parts]).sum(0)
        for f in fields(LossSums)
    }


def _step_of(pipeline: Pipeline, whole: HybridLM, rows: list[Row]) -> dict[str, Any]:
    """One step of both; the rank's gradients are compared here, its sums by the test."""
    pipeline.zero_grad()
    whole.zero_grad()
    found = pipeline.run(rows, Pretrain())
    expected = [Pretrain()(whole, row) for row in rows]
    for sums in expected:
        sums.loss.backward()
    for name, parameter in pipeline.named_parameters():
        reference = whole.get_parameter(name).grad
        assert parameter.grad is not None and reference is not None, f"{name} has no gradient"
        assert_close(parameter.grad, reference, f"the gradient of {name}")
    names = [name for name, _ in pipeline.named_parameters()]
    return {"found": _total(found), "expected": _total(expected), "names": names, "count": len(found)}


def _train(plan: Plan, changes: dict[str, Any], counts: list[int]) -> list[dict[str, Any]]:
    """Steps of so many micro-batches, over the same weights."""
    whole = small_model(**{**LAYERS, **LOSSES, **changes})
    pipeline = Pipeline(copy.deepcopy(whole), mesh_of(plan), 23, torch.float64)
    return [_step_of(pipeline, whole, _rows(count, first)) for first, count in enumerate(counts)]


def _assert_one_process(ranks: list[list[dict[str, Any]]], all_names: list[str]) -> None:
    for step in zip(*ranks, strict=True):
        for name, expected in step[0]["expected"].items():
            assert_close(sum(rank["found"][name] for rank in step), expected, name)
        assert sorted(name for rank in step for name in rank["names"]) == all_names


@pytest.mark.parametrize(
    ("plan", "changes", "counts"),
    [
        (Plan(pp=2), {"router_aux_loss": "gshard"}, [4, 4, 2]),
        (Plan(pp=2), {"router_aux_loss": "switch", "token_drop": "position"}, [4]),
        (Plan(pp=2), {"num_local_experts": 0, "capacity_factor": None}, [3]),
        (make_plan(INTERLEAVED, 2), {"router_aux_loss": "switch"}, [4, 2]),
        (make_plan(INTERLEAVED, 2), {"router_aux_loss": "gshard", "shared_intermediate_size": 8}, [4]),
        (Plan(pp=4), {"router_aux_loss": "switch"}, [4]),
        (Plan(pp=4), {"router_aux_loss": "gshard"}, [6]),
    ],
    ids=str,
)
def test_a_pipeline_is_one_process(ranks: Ranks, plan: Plan, changes: dict[str, Any], counts: list[int]) -> None:
    whole = small_model(**{**LAYERS, **LOSSES, **changes})
    _assert_one_process(
        ranks(plan.world, _train, plan, changes, counts), sorted(name for name, _ in whole.named_parameters())
    )
