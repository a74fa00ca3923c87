"""The planner's bytes are those that ranks hand to collectives, per axis and operation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from one_process import COSFORMER2, FIRST_DENSE, HGRN2, LATENT, RING, WINDOWED
from planner_proof import Bytes, measure_traffic

from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.planner import StepShape

_LENGTHS = [13, 1, 18, 16]  # of a row's documents, some of which context ranks share
_ROUTED = ("ep", "etp")

ROOMY = {"capacity_factor": 10.0}  # a capacity that drops nothing: the bytes of ep and etp are known in full


def _settings(**values: Any) -> ParallelConfig:
    return ParallelConfig(**values)


FOUR: list[Any] = [
    (Plan(dp_shard=4, settings=_settings(reshard_after_forward=False)), {}, 2),
    pytest.param(Plan(dp_replicate=2, dp_shard=2), {"shared_intermediate_size": 12}, 1, marks=pytest.mark.slow),
    (Plan(cp=4), {"vocab_size": 101, "num_local_experts": 3}, 1),
    pytest.param(Plan(cp=2, tp=2), WINDOWED, 1, marks=pytest.mark.slow),
    pytest.param(Plan(cp=2, tp=2), COSFORMER2, 1, marks=pytest.mark.slow),
    (Plan(cp=2, tp=2), HGRN2, 1),
    (Plan(cp=2, tp=2), LATENT, 1),
    (Plan(cp=2, tp=2), RING, 1),
    (Plan(dp_shard=2, tp=2), {"num_nextn_predict_layers": 2, "vocab_size": 101}, 2),
    pytest.param(Plan(cp=2, tp=2, ep=2), ROOMY | {"num_nextn_predict_layers": 1}, 1, marks=pytest.mark.slow),
    (Plan(pp=2, tp=2, ep=2), FIRST_DENSE, 2),
    pytest.param(Plan(tp=4), {}, 1, marks=pytest.mark.slow),
    (Plan(tp=2, dp_shard=2), {"num_local_experts": 0, "tie_word_embeddings": True}, 2),
    pytest.param(Plan(pp=2, cp=2), {}, 3, marks=pytest.mark.slow),
    pytest.param(
        Plan(pp=2, tp=2, settings=_settings(pipeline_schedule="interleaved", stages_per_rank=2)),
        {},
        4,
        marks=pytest.mark.slow,
    ),
    pytest.param(Plan(dp_shard=4, ep=2, etp=2, settings=_settings(token_groups=3)), ROOMY, 1, marks=pytest.mark.slow),
    pytest.param(Plan(cp=2, tp=2, ep=2, etp=2), ROOMY | {"token_drop": "position"}, 1, marks=pytest.mark.slow),
    (Plan(cp=2, tp=2, ep=2, settings=_settings(activation_checkpointing="full")), ROOMY, 1),
    pytest.param(
        Plan(cp=2, tp=2, etp=2, settings=_settings(activation_checkpointing="selective")), {}, 1, marks=pytest.mark.slow
    ),
    pytest.param(
        Plan(cp=2, tp=2, settings=_settings(activation_checkpointing="full")),
        {"num_local_experts": 0},
        1,
        marks=pytest.mark.slow,
    ),
]
EIGHT: list[tuple[Plan, dict[str, Any], int]] = [
    (Plan(pp=2, dp_shard=2, cp=2, ep=2, etp=2), ROOMY, 4),
    (Plan(pp=2, cp=2, tp=2, ep=4, settings=_settings(activation_checkpointing="full")), {}, 2),
    (Plan(dp_replicate=2, dp_shard=2, tp=2, ep=2), {}, 2),
    (Plan(cp=8), {}, 1),
]


@pytest.mark.parametrize(("plan", "changes", "batches"), FOUR, ids=str)
def test_on_four_ranks(ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any], batches: int) -> None:
    _check(ranks(4, measure_traffic, plan, changes, _step(plan, batches), _LENGTHS, torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "changes", "batches"), EIGHT, ids=str)
def test_on_eight_ranks(ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any], batches: int) -> None:
    _check(ranks(8, measure_traffic, plan, changes, _step(plan, batches), _LENGTHS, torch.float32))


@pytest.mark.parametrize("reduce_dtype", ["auto", "float32"])
def test_in_bfloat16(ranks: Callable[..., list[Any]], reduce_dtype: str) -> None:
    plan = Plan(cp=2, dp_shard=2, ep=2, settings=_settings(reduce_dtype=reduce_dtype))
    _check(ranks(4, measure_traffic, plan, {}, _step(plan, 1), _LENGTHS, torch.bfloat16))


def _step(plan: Plan, num_micro_batches: int) -> StepShape:
    return StepShape(sum(_LENGTHS), sum(_LENGTHS) * plan.dp, num_micro_batches)


def _check(found: list[tuple[Bytes, Bytes]]) -> None:
    """Equal on every rank; for what follows the routing, over all of them."""
    assert any(counted for counted, _ in found)
    for key in {key for counted, predicted in found for key in (*counted, *predicted)}:
        counted, predicted = ([of_rank[kind].get(key, 0) for of_rank in found] for kind in (0, 1))
        if key[0] in _ROUTED:
            assert sum(counted) == pytest.approx(sum(predicted), abs=1e-3), key
        else:
            assert counted == predicted, key
