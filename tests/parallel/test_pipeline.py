"""A model dealt to pipeline stages against the same model in one process, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from one_process import Row, assert_close, part_of_model, random_row, small_model

from leyden.core.errors import UserError
from leyden.model import HybridLM, Rope
from leyden.parallel import ParallelConfig, Plan, make_plan
from leyden.parallel.objective import Sums, add_up, sums_of_row
from leyden.parallel.pipeline import Pipeline, StageModel, boundary
from leyden.parallel.shard import install_fsdp, local, sharded_part, summed_over
from leyden.train.objective import Pretrain

MODEL = {
    "num_hidden_layers": 5,
    "layer_types": ("linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"),
    "router_aux_loss_coef": 0.3,
    "router_z_loss_coef": 0.02,
    "z_loss_coef": 0.001,
    "capacity_factor": 0.8,
}
DOCUMENTS = [[7, 1, 15], [23], [3, 3, 0, 17], [11, 12], [1, 1, 21], [20, 3]]
INTERLEAVED = ParallelConfig(pp=2, pipeline_schedule="interleaved", stages_per_rank=2)

Ranks = Callable[..., list[Any]]


def _rows(count: int, first: int = 0, longer: int = 0) -> list[Row]:
    """Micro-batches of 23 tokens and so many more."""
    documents = [DOCUMENTS[(first + index) % len(DOCUMENTS)] for index in range(count)]
    return [random_row([*lengths, longer], seed=first + index) for index, lengths in enumerate(documents)]


def _total(parts: list[Sums]) -> dict[str, torch.Tensor]:
    total = add_up(parts)
    found = {"minimised": total.loss, "weight": total.weight, **total.metrics}
    return {name: value.double() for name, value in found.items()}


def _one_process(whole: HybridLM, rows: list[Row]) -> dict[str, torch.Tensor]:
    """The sums of a step, its gradients left in ``whole``."""
    whole.zero_grad()
    parts = [sums_of_row(Pretrain(), whole, row) for row in rows]
    for sums in parts:
        sums.loss.backward()
    return _total(parts)


def _train(plan: Plan, changes: dict[str, Any], steps: list[tuple[int, int]]) -> dict[str, Any]:
    """Steps of so many micro-batches, so much longer, over the same weights, each with another RoPE base.

    Gradients are compared here, the sums of all ranks by the test.
    """
    whole = small_model(**{**MODEL, **changes})
    pipeline = Pipeline(copy.deepcopy(whole), mesh_of(plan), 23, torch.float64)
    found, expected = [], []
    for index, (count, longer) in enumerate(steps):
        pipeline.zero_grad()
        for model in (pipeline, whole):
            model.set_rope(Rope(10.0 ** (index + 1)))
        assert pipeline.config == whole.config
        rows = _rows(count, first=index, longer=longer)
        found.append(_total(pipeline.run(rows, Pretrain())))
        expected.append(_one_process(whole, rows))
        for name, parameter in pipeline.named_parameters():
            reference = whole.get_parameter(name).grad
            assert parameter.grad is not None and reference is not None, f"{name} has no gradient"
            assert_close(parameter.grad, reference, f"the gradient of {name}")
    names = [name for name, _ in pipeline.named_parameters()]
    assert list(pipeline.state_dict()) == names
    return {"found": found, "expected": expected, "names": names}


@pytest.mark.parametrize(
    ("plan", "changes", "steps"),
    [
        (Plan(pp=2), {"router_aux_loss": "gshard"}, [(4, 0), (2, 0), (2, 8), (4, 0)]),
        (Plan(pp=2), {"router_aux_loss": "switch", "token_drop": "position"}, [(4, 0)]),
        (Plan(pp=2), {"num_local_experts": 0}, [(3, 0)]),
        (make_plan(INTERLEAVED, 2), {"router_aux_loss": "switch"}, [(4, 0), (2, 8)]),
        pytest.param(
            make_plan(INTERLEAVED, 2),
            {"router_aux_loss": "gshard", "shared_intermediate_size": 8},
            [(4, 0)],
            marks=pytest.mark.slow,
        ),
        pytest.param(Plan(pp=4), {"router_aux_loss": "switch"}, [(4, 0)], marks=pytest.mark.slow),
        pytest.param(
            Plan(pp=4), {"router_aux_loss": "gshard", "capacity_factor": None}, [(6, 0)], marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_pipeline_is_one_process(
    ranks: Ranks, plan: Plan, changes: dict[str, Any], steps: list[tuple[int, int]]
) -> None:
    results = ranks(plan.world, _train, plan, changes, steps)
    for step, expected in enumerate(results[0]["expected"]):
        assert expected["dropped"] > 0 or changes.keys() & {"capacity_factor", "num_local_experts"}
        for name, value in expected.items():
            assert_close(sum(result["found"][step][name] for result in results), value, name)
    names = [name for result in results for name in result["names"]]
    assert sorted(names) == sorted(name for name, _ in small_model(**{**MODEL, **changes}).named_parameters())


def _train_sharded(plan: Plan) -> list[dict[str, Any]]:
    """Stages under FSDP; each data rank has one of two documents that one process has in one row."""
    mesh = mesh_of(plan)
    whole = small_model(**{**MODEL, "capacity_factor": None, "router_aux_loss": "switch"})
    model, parts = part_of_model(whole, mesh)
    pipeline = Pipeline(model, mesh, 23, torch.float64)
    for stage in pipeline.stages:
        install_fsdp(stage, mesh, torch.float64)
    joint = [random_row([14, 14], seed=seed) for seed in range(4)]
    own = slice(14 * mesh.dp_rank, 14 * (mesh.dp_rank + 1))
    alone = torch.tensor([0, 14], dtype=torch.int32)
    rows = [Row(row.tokens[:, own], row.labels[:, own], alone) for row in joint]
    results = []
    for _ in range(2):
        pipeline.zero_grad()
        found, expected = _total(pipeline.run(rows, Pretrain())), _one_process(whole, joint)
        results.append({"found": found, "expected": expected})
        for name, parameter in pipeline.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            gradient = local(parameter.grad).clone()
            group = summed_over(name, mesh)
            if group is not None:
                torch.distributed.all_reduce(gradient, group=mesh.groups[group])
            reference = sharded_part(name, parts[name], mesh).cut(whole.get_parameter(name).grad)
            assert_close(gradient, reference, f"the gradient of {name}")
    return results


@pytest.mark.parametrize(
    ("reshard", "per_rank"),
    [(True, 1), *(pytest.param(reshard, 2, marks=pytest.mark.slow) for reshard in (True, False))],
)
def test_stages_are_sharded(ranks: Ranks, reshard: bool, per_rank: int) -> None:
    schedule = "interleaved" if per_rank > 1 else "1f1b"
    config = ParallelConfig(pp=2, stages_per_rank=per_rank, pipeline_schedule=schedule, reshard_after_forward=reshard)
    results = ranks(4, _train_sharded, make_plan(config, 4))
    for step in zip(*results, strict=True):
        for name, expected in step[0]["expected"].items():
            # The shares of the load are rounded to float32 before they meet.
            tolerance = 1e-6 if name in ("expert_load", "dropped") else 1e-10
            assert_close(sum(rank["found"][name] for rank in step), expected, name, tolerance)


def _train_narrow(plan: Plan) -> dict[str, Any]:
    whole = small_model(torch.bfloat16, **MODEL)
    pipeline = Pipeline(copy.deepcopy(whole), mesh_of(plan), 23, torch.bfloat16)
    found, expected = _total(pipeline.run(_rows(2), Pretrain())), _one_process(whole, _rows(2))
    for name, parameter in pipeline.named_parameters():
        reference = whole.get_parameter(name).grad
        assert parameter.grad is not None and reference is not None
        assert torch.equal(parameter.grad, reference), f"the gradient of {name} has other bits"
    return {"found": found, "expected": expected}


def test_bfloat16_gradients_are_the_bits_of_one_process(ranks: Ranks) -> None:
    """Only what is reported of the routers, their losses and what was dropped, is summed in another order."""
    results = ranks(2, _train_narrow, Plan(pp=2))
    for name, expected in results[0]["expected"].items():
        tolerance = 1e-6 if name in ("minimised", "dropped") else 0.0
        assert_close(sum(result["found"][name] for result in results), expected, name, tolerance)


def _refusals(plan: Plan) -> list[str]:
    mesh = mesh_of(plan)
    pipeline = Pipeline(small_model(**MODEL), mesh, 23, torch.float64)
    cases: list[Callable[[], Any]] = [
        lambda: pipeline.run([*_rows(3), *_rows(1, longer=4)], Pretrain()),
        lambda: pipeline.run(_rows(1) if plan.num_stages == 2 else _rows(5), Pretrain()),
        lambda: pipeline.run([Row(row.tokens, row.labels, row.cu_seqlens[:-2]) for row in _rows(4)], Pretrain()),
        lambda: Pipeline(small_model(**MODEL, tie_word_embeddings=True), mesh, 23, torch.float64),
    ]
    messages = []
    for case in cases:
        with pytest.raises(UserError) as caught:
            case()
        messages.append(str(caught.value))
    return messages


def test_what_cannot_run_is_refused(ranks: Ranks) -> None:
    found = ranks(2, _refusals, Plan(pp=2))[0]
    assert "rows of one length; given rows of [23, 27] tokens" in found[0]
    assert "a step of 1 micro-batches cannot fill a 1f1b pipeline of 2 stages" in found[1]
    assert "cu_seqlens must rise from 0 to the row's 23 tokens" in found[2]
    assert "tie_word_embeddings" in found[3]
    assert "5 micro-batches does not divide into 2 rounds" in ranks(2, _refusals, make_plan(INTERLEAVED, 2))[1][1]


def test_a_stage_of_a_model_without_memory() -> None:
    """On the meta device, as the planner makes it: names are those of the model, and what travels has a size."""
    with torch.device("meta"):
        model = HybridLM(small_model(**MODEL).config)
    first, last = StageModel(model, range(2)), StageModel(model, range(2, 5))
    assert first.is_first and last.is_last and first.norm is None and last.embed_tokens is None
    names = [name for stage in (first, last) for name, _ in stage.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()]
    hidden, routed = boundary(model.config, 12, torch.bfloat16)
    assert (hidden.shape, hidden.dtype) == ((1, 12, 24), torch.bfloat16)
    assert (routed.shape, routed.dtype) == ((2 + 4 + 4 + 5 * 4,), torch.float32)
