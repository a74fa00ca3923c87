"""LASP+ with decays from the data against one process: random documents over unequal parts, forward and backward."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import mesh_of
from shared_rows import Row, context_of, draw_row, noise_of

from leyden.ops import gated_linear_attention
from leyden.parallel import Plan
from leyden.parallel.sequence import GatedLasp
from leyden.parallel.traffic import Traffic, count_traffic

H, K, V = 3, 4, 5


def _inputs(row: Row) -> list[torch.Tensor]:
    """q, k, v, decays from none at all to all of it, and the gradient of the output."""
    generator = torch.Generator().manual_seed(row.seed)
    q, k, g, v, dout = (
        torch.randn(1, row.tokens, H, n, generator=generator, dtype=torch.float64) for n in (K, K, K, V, V)
    )
    return [q, k, v, -torch.exp(3 * g).masked_fill(g > 1.5, torch.inf), dout]


def _alone(row: Row) -> list[torch.Tensor]:
    *leaves, dout = (x.requires_grad_() for x in _inputs(row))
    out, _ = gated_linear_attention(*leaves, None, torch.tensor(row.documents), "reference")
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _shared(row: Row, lasp: GatedLasp, rank: int) -> list[torch.Tensor]:
    """This rank's rows of the output and of the gradients."""
    mine = slice(row.bounds[rank], row.bounds[rank + 1])
    *leaves, dout = (x[:, mine].requires_grad_() for x in _inputs(row))
    out, state = lasp(*leaves, None, context_of(row, rank))
    assert not state.requires_grad and state.shape == (1, H, K, V)
    torch.testing.assert_close(state, _state_at(row, mine), rtol=0, atol=1e-12)
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _state_at(row: Row, mine: slice) -> torch.Tensor:
    """After the last token of a part; of an empty one, what comes into it."""
    last = mine.stop if mine.stop > mine.start else mine.stop + 1
    begin = max(bound for bound in row.documents if bound < last)
    q, k, v, decay, _ = (x[:, begin : mine.stop] for x in _inputs(row))
    return gated_linear_attention(q, k, v, decay, backend="reference")[1]


def _against_one_process(rows: list[Row]) -> list[float]:
    """The worst error of this rank over the rows, as a share of what is allowed."""
    lasp, rank, worst = GatedLasp(mesh_of(Plan(cp=dist.get_world_size()))), dist.get_rank(), []
    for row in rows:
        mine, exact = slice(row.bounds[rank], row.bounds[rank + 1]), _alone(row)
        worst += [noise_of(f, e[:, mine], e, e) for f, e in zip(_shared(row, lasp, rank), exact, strict=True)]
    return worst


def test_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]]) -> None:
    drawn = random.Random(5)
    for worst in ranks(4, _against_one_process, [draw_row(drawn, 4) for _ in range(16)]):
        assert max(worst) <= 1


def _traffic(row: Row) -> Traffic:
    """Of one layer, forward and backward."""
    mesh = mesh_of(Plan(cp=dist.get_world_size()))
    with count_traffic(mesh) as traffic:
        _shared(row, GatedLasp(mesh), dist.get_rank())
    return traffic


def test_what_is_sent_does_not_depend_on_the_length(ranks: Callable[..., list[Any]]) -> None:
    """One state and the decays of its key dims, of 16 tokens as of 100, whole or in documents, in even parts or not."""
    for documents, bounds in (((0, 16), (0, 4, 8, 12, 16)), ((0, 10, 80, 100), (0, 0, 50, 80, 100))):
        for traffic in ranks(4, _traffic, Row(documents, bounds, seed=1)):
            assert [(call.operation, call.axis) for call in traffic.calls] == [
                ("all_gather", "cp"),
                ("reduce_scatter", "cp"),
            ]
            sent = 8 * H * K * (V + 1)
            assert [call.num_bytes for call in traffic.calls] == [sent, 4 * sent]


def _refused(row: Row) -> str:
    lasp, context = GatedLasp(mesh_of(Plan(cp=dist.get_world_size()))), context_of(row, dist.get_rank())
    mine = slice(row.bounds[dist.get_rank()], row.bounds[dist.get_rank() + 1])
    q, k, v, decay, _ = (x[:, mine] for x in _inputs(row))
    with pytest.raises(RuntimeError, match="cp = 1") as error:
        lasp(q, k, v, decay, torch.zeros(1, H, K, V), context)
    return str(error.value)


def test_a_state_to_continue_from_is_refused(ranks: Callable[..., list[Any]]) -> None:
    assert all("continues no cache" in message for message in ranks(4, _refused, Row((0, 8), (0, 2, 4, 6, 8), seed=1)))
