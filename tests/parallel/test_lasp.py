"""LASP+ against one process: random documents over unequal parts, forward and backward, and what it sends."""

import importlib
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import mesh_of
from one_process import small_model
from shared_rows import Row, context_of, draw_row, noise_of

from leyden.ops import lightning_attention, lightning_slopes
from leyden.parallel import Plan
from leyden.parallel.sequence import LaspPlus, install_sequence
from leyden.parallel.traffic import Traffic, count_traffic

lasp_module = importlib.import_module("leyden.parallel.sequence.lasp")

H, K, V = 3, 4, 5


def _inputs(row: Row, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(row.seed)
    return [torch.randn(1, row.tokens, H, n, generator=generator, dtype=torch.float64).to(dtype) for n in (K, K, V, V)]


def _slopes(row: Row) -> torch.Tensor:
    """Of MiniMax, or one that forgets nothing beside one that forgets all."""
    return lightning_slopes(H, row.seed % 4, 4) if row.seed % 3 else torch.tensor([0.0, 0.02, 5.0])


def _alone(row: Row, dtype: torch.dtype, backend: str = "reference") -> list[torch.Tensor]:
    q, k, v, dout = _inputs(row, dtype)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, _ = lightning_attention(*leaves, _slopes(row), None, torch.tensor(row.documents), backend)
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _shared(row: Row, dtype: torch.dtype, lasp: LaspPlus, rank: int) -> list[torch.Tensor]:
    """This rank's rows of the output and of the gradients."""
    context = context_of(row, rank)
    mine = slice(row.bounds[rank], row.bounds[rank + 1])
    *leaves, dout = (x[:, mine].requires_grad_() for x in _inputs(row, dtype))
    out, state = lasp(*leaves, _slopes(row), None, context)
    assert not state.requires_grad and state.shape == (1, H, K, V)
    if dtype == torch.float64:
        torch.testing.assert_close(state, _state_at(row, mine), rtol=0, atol=1e-12)
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _state_at(row: Row, mine: slice) -> torch.Tensor:
    """After the last token of a part; of an empty one, what comes into it."""
    last = mine.stop if mine.stop > mine.start else mine.stop + 1
    begin = max(bound for bound in row.documents if bound < last)
    _, k, v, _ = (x[:, begin : mine.stop] for x in _inputs(row, torch.float64))
    return lightning_attention(k, k, v, _slopes(row), backend="reference")[1]


def _against_one_process(rows: list[Row], dtype: torch.dtype) -> list[float]:
    """The worst error of this rank over the rows, as a share of what is allowed."""
    mesh = mesh_of(Plan(cp=dist.get_world_size()))
    lasp, rank, worst = LaspPlus(mesh), dist.get_rank(), []
    for row in rows:
        mine = slice(row.bounds[rank], row.bounds[rank + 1])
        found = _shared(row, dtype, lasp, rank)
        exact = _alone(row, torch.float64)
        plain = exact if dtype == torch.float64 else _alone(row, dtype)
        for f, e, p in zip(found, exact, plain, strict=True):
            assert f.dtype == dtype and f.isfinite().all()
            worst.append(noise_of(f, e[:, mine], p, e))
    return worst


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]], dtype: torch.dtype) -> None:
    drawn = random.Random(5)
    rows = [draw_row(drawn, 4) for _ in range(40 if dtype == torch.float64 else 10)]
    for worst in ranks(4, _against_one_process, rows, dtype):
        assert max(worst) <= 1


@pytest.mark.slow
def test_eight_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]]) -> None:
    drawn = random.Random(7)
    rows = [draw_row(drawn, 8, longest=100) for _ in range(40)]
    for errors in ranks(8, _against_one_process, rows, torch.float64):
        assert max(errors) <= 1


def _traffic(row: Row) -> Traffic:
    """Of one layer, forward and backward."""
    mesh = mesh_of(Plan(cp=dist.get_world_size()))
    with count_traffic(mesh) as traffic:
        _shared(row, torch.bfloat16, LaspPlus(mesh), dist.get_rank())
    return traffic


def test_what_is_sent_does_not_depend_on_the_length(ranks: Callable[..., list[Any]]) -> None:
    """One state [H, K, V] in float32 a pass, of 1k tokens as of 8k, whole or in documents, in even parts or not."""
    for documents, bounds in (
        ((0, 1024), (0, 256, 512, 768, 1024)),
        ((0, 8192), (0, 2048, 4096, 6144, 8192)),
        ((0, 100, 5000, 8192), (0, 0, 4096, 5000, 8192)),
    ):
        for traffic in ranks(4, _traffic, Row(documents, bounds, seed=1)):
            assert [(call.operation, call.axis) for call in traffic.calls] == [("all_gather", "cp")] * 2
            assert [call.num_bytes for call in traffic.calls] == [4 * H * K * V] * 2


class _Noting(torch.autograd.Function):
    """Nothing, noted when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, events: list[str]) -> torch.Tensor:
        ctx.events = events
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.events.append("attention")
        return grads[0], None


def _events(row: Row) -> list[str]:
    """What one layer does, in order; attention notes itself before it computes."""
    events: list[str] = []
    exchange = lasp_module._Exchange
    begin, finish = exchange.begin, exchange.finish

    def attention(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        events.append("attention")
        out, states = lightning_attention(*inputs)
        return _Noting.apply(out, events), states

    with (
        mock.patch.object(exchange, "begin", lambda *x: (events.append("begin"), begin(*x))[1]),
        mock.patch.object(exchange, "finish", lambda *x: (events.append("finish"), finish(*x))[1]),
        mock.patch.object(lasp_module, "lightning_attention", attention),
    ):
        _shared(row, torch.float64, LaspPlus(mesh_of(Plan(cp=dist.get_world_size()))), dist.get_rank())
    return events


def test_states_travel_while_a_rank_attends_to_its_own(ranks: Callable[..., list[Any]]) -> None:
    for events in ranks(4, _events, Row((0, 30), (0, 8, 16, 24, 30), seed=1)):
        assert events == ["begin", "attention", "finish"] * 2


def _installed(plan: Plan) -> list[bool]:
    """Whether each attention layer of a model has another seam than before."""
    model, mesh = small_model(num_local_experts=0), mesh_of(plan)
    before = [getattr(layer.self_attn, "scan", getattr(layer.self_attn, "attend", None)) for layer in model.layers]
    install_sequence(model, mesh)
    after = [getattr(layer.self_attn, "scan", getattr(layer.self_attn, "attend", None)) for layer in model.layers]
    return [a is not b for a, b in zip(after, before, strict=True)]


def test_layers_are_given_their_means_where_ranks_share_a_row(ranks: Callable[..., list[Any]]) -> None:
    assert ranks(4, _installed, Plan(cp=2, tp=2)) == [[True] * 3] * 4
    assert ranks(4, _installed, Plan(dp_shard=2, tp=2)) == [[False] * 3] * 4


def _refused(row: Row) -> str:
    lasp, context = LaspPlus(mesh_of(Plan(cp=dist.get_world_size()))), context_of(row, dist.get_rank())
    mine = slice(row.bounds[dist.get_rank()], row.bounds[dist.get_rank() + 1])
    q, k, v, _ = (x[:, mine] for x in _inputs(row, torch.float32))
    with pytest.raises(RuntimeError, match="cp = 1") as error:
        lasp(q, k, v, _slopes(row), torch.zeros(1, H, K, V), context)
    return str(error.value)


def test_a_state_to_continue_from_is_refused(ranks: Callable[..., list[Any]]) -> None:
    assert all("continues no cache" in message for message in ranks(4, _refused, Row((0, 8), (0, 2, 4, 6, 8), seed=1)))
