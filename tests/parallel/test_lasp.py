"""LASP+ against one process: random documents over unequal parts, forward and backward, and what it sends."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import mesh_of
from shared_rows import Row, draw_row, noise_of, sequence_of

from leyden.ops import lightning_attention, lightning_slopes
from leyden.parallel import Plan
from leyden.parallel.sequence import LaspPlus

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
    sequence = sequence_of(row, rank)
    mine = slice(row.bounds[rank], row.bounds[rank + 1])
    *leaves, dout = (x[:, mine].requires_grad_() for x in _inputs(row, dtype))
    out, states = lasp(*leaves, _slopes(row), None, sequence)
    ends = [min(max(0, end - mine.start), mine.stop - mine.start) for end in row.documents]
    assert not states.requires_grad and states.shape == (len(sequence.part.documents()) - 1, H, K, V), ends
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _against_one_process(rows: list[Row], dtype: torch.dtype) -> list[float]:
    """The worst error of this rank over the rows, as a share of what is allowed."""
    mesh = mesh_of(Plan(cp=dist.get_world_size()))
    lasp, rank, worst = LaspPlus(mesh), dist.get_rank(), []
    for row in rows:
        mine = slice(row.bounds[rank], row.bounds[rank + 1])
        found = _shared(row, dtype, lasp, rank)
        exact, plain = (_alone(row, torch.float64), _alone(row, dtype))
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
