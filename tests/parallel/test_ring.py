"""Ring attention against one process: random documents over unequal parts, in both layouts, forward and backward."""

import importlib
import random
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import mesh_of
from shared_rows import Row, context_of, draw_row, noise_of

from leyden.ops import softmax_attention
from leyden.parallel import Plan
from leyden.parallel.sequence import RingAttention
from leyden.parallel.traffic import Traffic, count_traffic

ring_module = importlib.import_module("leyden.parallel.sequence.ring")

HQ, HKV, D = 4, 2, 6

Layout = Literal["balanced", "contiguous"]


def _inputs(row: Row, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(row.seed)
    heads = (HQ, HKV, HKV, HQ)
    return [torch.randn(1, row.tokens, h, D, generator=generator, dtype=torch.float64).to(dtype) for h in heads]


def _alone(row: Row, dtype: torch.dtype, window: int | None = None) -> list[torch.Tensor]:
    q, k, v, dout = _inputs(row, dtype)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    backend = "reference" if dtype == torch.float64 else "torch"
    out = softmax_attention(*leaves, torch.tensor(row.documents), backend, window=window)
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _shared(
    row: Row, dtype: torch.dtype, ring: RingAttention, rank: int, window: int | None = None
) -> list[torch.Tensor]:
    """This rank's rows of the output and of the gradients."""
    mine = slice(row.bounds[rank], row.bounds[rank + 1])
    *leaves, dout = (x[:, mine].requires_grad_() for x in _inputs(row, dtype))
    out = ring(*leaves, context_of(row, rank), window)
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _against_one_process(rows: list[Row], dtype: torch.dtype, layout: Layout, window: int | None = None) -> list[float]:
    """The errors of this rank over the rows, as shares of what is allowed."""
    ring, rank, errors = RingAttention(mesh_of(Plan(cp=dist.get_world_size())), layout), dist.get_rank(), []
    for row in rows:
        mine = slice(row.bounds[rank], row.bounds[rank + 1])
        found = _shared(row, dtype, ring, rank, window)
        exact = _alone(row, torch.float64, window)
        plain = exact if dtype == torch.float64 else _alone(row, dtype, window)
        for f, e, p in zip(found, exact, plain, strict=True):
            assert f.dtype == dtype and f.isfinite().all()
            errors.append(noise_of(f, e[:, mine], p, e))
    return errors


_few_or_many = pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])


@_few_or_many
@pytest.mark.parametrize("layout", ["balanced", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ranks_compute_what_one_process_does(
    ranks: Callable[..., list[Any]], dtype: torch.dtype, layout: Layout, count: int
) -> None:
    drawn = random.Random(6)
    rows = [draw_row(drawn, 4) for _ in range(2 * count if dtype == torch.float64 else count)]
    for errors in ranks(4, _against_one_process, rows, dtype, layout):
        assert max(errors) <= 1


@_few_or_many
@pytest.mark.parametrize("window", [1, 7, 40])
def test_ranks_compute_a_window_as_one_process_does(ranks: Callable[..., list[Any]], window: int, count: int) -> None:
    drawn = random.Random(window)
    rows = [draw_row(drawn, 4) for _ in range(count)]
    for errors in ranks(4, _against_one_process, rows, torch.float64, "balanced", window):
        assert max(errors) <= 1


@pytest.mark.slow
def test_eight_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]]) -> None:
    drawn = random.Random(7)
    rows = [draw_row(drawn, 8, longest=100) for _ in range(40)]
    for errors in ranks(8, _against_one_process, rows, torch.float64, "balanced"):
        assert max(errors) <= 1


def _traffic(row: Row, layout: Layout) -> Traffic:
    """Of one layer, forward and backward, in bfloat16."""
    mesh = mesh_of(Plan(cp=dist.get_world_size()))
    with count_traffic(mesh) as traffic:
        _shared(row, torch.bfloat16, RingAttention(mesh, layout), dist.get_rank())
    return traffic


def test_what_is_sent(ranks: Callable[..., list[Any]]) -> None:
    """Keys and values go around twice, their gradients once, in float32; q, k and v are switched, and out back."""
    tokens = 64
    row = Row((0, 4 * tokens), tuple(tokens * rank for rank in range(5)), seed=1)
    key_values, queries = 2 * tokens * HKV * D, tokens * HQ * D
    for traffic in ranks(4, _traffic, row, "contiguous"):
        assert traffic.by_operation() == {("cp", "send"): 3 * key_values * (2 + 2 + 4)}
    for traffic in ranks(4, _traffic, row, "balanced"):
        assert traffic.by_operation() == {
            ("cp", "send"): 3 * key_values * (2 + 2 + 4),
            ("cp", "all_to_all"): 2 * (2 * queries + key_values) * 2,
        }
        assert [call.operation for call in traffic.calls].count("all_to_all") == 4


def _events(row: Row, layout: Layout) -> list[str]:
    """What one layer does, in order."""
    events: list[str] = []
    passing = ring_module._Passing
    start, wait = dist.batch_isend_irecv, passing.wait

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs, **named: (events.append(name), function(*inputs, **named))[1]

    with (
        mock.patch.object(dist, "batch_isend_irecv", noting("send", start)),
        mock.patch.object(passing, "wait", noting("wait", wait)),
        mock.patch.object(ring_module, "ranged_attention", noting("attend", ring_module.ranged_attention)),
        mock.patch.object(
            ring_module, "ranged_attention_backward", noting("differentiate", ring_module.ranged_attention_backward)
        ),
    ):
        mesh = mesh_of(Plan(cp=dist.get_world_size()))
        _shared(row, torch.float64, RingAttention(mesh, layout), dist.get_rank())
    return events


def test_blocks_travel_while_a_rank_computes(ranks: Callable[..., list[Any]]) -> None:
    forward = ["send", "attend", "wait"] * 3 + ["attend"]
    first, middle = ["send", "differentiate", "wait"], ["send", "differentiate", "send", "wait"]
    later = ["send", "differentiate", "wait", "send", "wait"]  # gradients arrive, leave with one's own; then keys
    backward = [*first, *middle, *later, "differentiate", "wait", "send", "wait"]
    for events in ranks(4, _events, Row((0, 64), (0, 16, 32, 48, 64), seed=1), "balanced"):
        assert events == forward + backward


def test_keys_that_nobody_sees_are_passed_on_and_no_more(ranks: Callable[..., list[Any]]) -> None:
    """In contiguous parts of one document, rank r sees the keys of r + 1 ranks; in a document each, its own."""
    whole = ranks(4, _events, Row((0, 64), (0, 16, 32, 48, 64), seed=1), "contiguous")
    assert [events.count("attend") for events in whole] == [1, 2, 3, 4]
    assert [events.count("differentiate") for events in whole] == [1, 2, 3, 4]
    apart = ranks(4, _events, Row((0, 16, 32, 48, 64), (0, 16, 32, 48, 64), seed=1), "contiguous")
    assert [events.count("attend") for events in apart] == [1] * 4
    assert all(events.count("send") == 3 + 3 + 3 for events in (*whole, *apart))


def _refused(row: Row) -> str:
    ring, context = RingAttention(mesh_of(Plan(cp=dist.get_world_size()))), context_of(row, dist.get_rank())
    q, k, v, _ = _inputs(row, torch.float32)
    with pytest.raises(RuntimeError, match="cp = 1") as error:
        ring(q[:, :2], k, v, context)
    return str(error.value)


def test_keys_of_a_cache_are_refused(ranks: Callable[..., list[Any]]) -> None:
    assert all("continues no cache" in message for message in ranks(4, _refused, Row((0, 8), (0, 2, 4, 6, 8), seed=1)))
