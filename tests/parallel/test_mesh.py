"""The groups of every axis, and the collectives that autograd passes through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of

from leyden.core.errors import UserError
from leyden.parallel import ParallelConfig, Plan, coordinates, make_plan
from leyden.parallel.collectives import exchange, gather, reduce_scatter, sum_over


def _groups(plan: Plan) -> dict[str, Any]:
    mesh = mesh_of(plan)
    members = {
        name: None if group is None else torch.distributed.get_process_group_ranks(group)
        for name, group in mesh.groups.items()
    }
    return {"at": mesh.at, "groups": members}


def test_a_stage_is_laid_out_twice(ranks: Callable[..., list[Any]]) -> None:
    found = ranks(4, _groups, Plan(cp=2, tp=2, ep=2, etp=2))
    assert [f["groups"]["tp"] for f in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [f["groups"]["cp"] for f in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [f["groups"]["etp"] for f in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [f["groups"]["ep"] for f in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert all(f["groups"]["pp"] is None and f["groups"]["stage"] == [0, 1, 2, 3] for f in found)
    assert [f["groups"]["fsdp_dense"] for f in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [f["groups"]["fsdp_experts"] for f in found] == [[0], [1], [2], [3]]


def test_expert_ranks_are_independent_of_tensor_ranks() -> None:
    plan = Plan(pp=2, dp_shard=2, cp=2, tp=2, ep=8)
    assert plan.world == 16
    assert plan.edp == 1
    at = coordinates(plan, 13)  # 13 = 1 101 in binary: stage 1, dp 1, cp 0, tp 1
    assert (at["pp"], at["dp_shard"], at["cp"], at["tp"], at["ep"], at["edp"]) == (1, 1, 0, 1, 5, 0)


def _adjoints(plan: Plan) -> list[float]:
    """``<f(x), y> = <x, f'(y)>`` summed over ranks, for each collective."""
    group = mesh_of(plan).groups["tp"]
    rank, errors = torch.distributed.get_rank(), []
    generator = torch.Generator().manual_seed(rank)
    sent, received = [[1, 2], [3, 4]][rank], [[1, 3], [2, 4]][rank]
    functions: list[tuple[tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]] = [
        ((2, 3, 5), lambda x: gather(x, 1, group)),
        ((2, 6, 5), lambda x: reduce_scatter(x, 1, group)),
        ((4, 5), lambda x: sum_over(x, group)),
        ((sum(sent), 5), lambda x: exchange(x, sent, received, group)),
    ]
    for shape, function in functions:
        x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        out = function(x)
        y = torch.randn(out.shape, dtype=torch.float64, generator=generator)
        (grad,) = torch.autograd.grad(out, x, y)
        sides = torch.stack([(out * y).sum(), (x * grad).sum()]).detach()
        torch.distributed.all_reduce(sides)
        errors.append(float(sides[0] - sides[1]))
    return errors


def test_every_collective_has_its_adjoint(ranks: Callable[..., list[Any]]) -> None:
    for errors in ranks(2, _adjoints, Plan(tp=2)):
        assert max(map(abs, errors)) < 1e-12


def test_a_plan_of_another_size_is_refused() -> None:
    assert make_plan(ParallelConfig(cp=2), 8).dp_shard == 4
    with pytest.raises(UserError, match="= 6 ranks and there are 4; start 6"):
        make_plan(ParallelConfig(cp=2, tp=3), 4)
