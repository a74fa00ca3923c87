"""Bytes handed to collectives, counted by axis: against figures by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import mesh_of
from torch import nn
from torch.distributed.fsdp import fully_shard

from leyden.parallel import Plan
from leyden.parallel.collectives import exchange, gather, reduce_scatter, sum_over
from leyden.parallel.traffic import Call, Traffic, count_traffic


def _every_collective(plan: Plan) -> Traffic:
    mesh = mesh_of(plan)
    tp, cp, pp = (mesh.groups[name] for name in ("tp", "cp", "stage"))
    assert tp is not None and cp is not None and pp is not None
    sent = [[1, 2], [3, 4]][mesh.index("cp")]
    received = [[1, 3], [2, 4]][mesh.index("cp")]
    x = torch.ones(4, 6, requires_grad=True)
    rows = torch.ones(sum(sent), 5, dtype=torch.bfloat16, requires_grad=True)
    with count_traffic(mesh) as traffic:
        total = gather(x, 0, tp).sum() + reduce_scatter(x, 1, tp).sum() + sum_over(x, pp).sum()
        (total + exchange(rows, sent, received, cp).float().sum()).backward()
        there, back = dist.get_process_group_ranks(cp)
        if mesh.index("cp") == 0:
            dist.send(torch.ones(7, dtype=torch.float64), back, group=cp)
        else:
            dist.recv(torch.empty(7, dtype=torch.float64), there, group=cp)
        dist.barrier(tp)
        dist.all_reduce(torch.ones(1))  # over a group of no axis
    dist.all_reduce(torch.ones(9), group=tp)  # no longer counted
    return traffic


def test_every_collective_is_counted_on_its_axis(ranks: Callable[..., list[Any]]) -> None:
    for rank, traffic in enumerate(ranks(4, _every_collective, Plan(cp=2, tp=2))):
        cp = rank // 2
        forward = [
            Call("all_gather", "tp", 96),
            Call("reduce_scatter", "tp", 96),
            Call("all_reduce", "stage", 96),
            Call("all_to_all", "cp", [30, 70][cp]),
        ]
        assert traffic.calls[:4] == forward
        backward = traffic.calls[4:8]
        assert sorted(backward, key=str) == sorted(
            [
                Call("reduce_scatter", "tp", 192),
                Call("all_gather", "tp", 48),
                Call("all_reduce", "stage", 96),
                Call("all_to_all", "cp", [40, 60][cp]),
            ],
            key=str,
        )
        assert traffic.calls[8:] == [Call("send", "cp", 56)] * (cp == 0) + [Call("all_reduce", "other", 4)]
        assert traffic.by_axis()["tp"] == 96 + 96 + 192 + 48
        assert traffic.by_operation()["tp", "all_gather"] == 96 + 48


def _sharded(plan: Plan) -> Traffic:
    mesh = mesh_of(plan)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False))
    for layer in model:
        fully_shard(layer, mesh=mesh.fsdp["dense"])
    fully_shard(model, mesh=mesh.fsdp["dense"])  # the root; it has no weights of its own
    with count_traffic(mesh) as traffic:
        model(torch.ones(3, 8)).sum().backward()
    return traffic


def test_collectives_of_fsdp_are_counted(ranks: Callable[..., list[Any]]) -> None:
    for traffic in ranks(2, _sharded, Plan(dp_shard=2)):
        # 48 weights a layer, of which a rank has half; gathered before the forward and before the backward.
        assert traffic.by_operation() == {
            ("fsdp_dense", "all_gather"): 4 * 24 * 4,
            ("fsdp_dense", "reduce_scatter"): 2 * 48 * 4,
        }


def _unknown(plan: Plan) -> str:
    mesh = mesh_of(plan)
    library = torch.library.Library("c10d", "FRAGMENT")
    library.define("shout_(Tensor input, str group_name) -> ()")
    library.impl("shout_", lambda x, name: None, "CompositeExplicitAutograd")
    with count_traffic(mesh), pytest.raises(RuntimeError) as raised:
        torch.ops.c10d.shout_(torch.ones(1), "tp")
    return str(raised.value)


def test_a_collective_that_is_not_known_is_no_zero(ranks: Callable[..., list[Any]]) -> None:
    assert "knows no collective" in ranks(2, _unknown, Plan(dp_shard=2))[0]
