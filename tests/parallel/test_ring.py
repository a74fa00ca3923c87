"""Ring attention against one process: random documents over unequal parts, in both layouts, forward and backward."""

import random
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import mesh_of
from shared_rows import Row, draw_row, noise_of, sequence_of

from leyden.ops import softmax_attention
from leyden.parallel import Plan
from leyden.parallel.sequence import RingAttention

HQ, HKV, D = 4, 2, 6

Layout = Literal["balanced", "contiguous"]


def _inputs(row: Row, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(row.seed)
    heads = (HQ, HKV, HKV, HQ)
    return [torch.randn(1, row.tokens, h, D, generator=generator, dtype=torch.float64).to(dtype) for h in heads]


def _alone(row: Row, dtype: torch.dtype) -> list[torch.Tensor]:
    q, k, v, dout = _inputs(row, dtype)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    backend = "reference" if dtype == torch.float64 else "torch"
    out = softmax_attention(*leaves, torch.tensor(row.documents), backend)
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]


def _against_one_process(rows: list[Row], dtype: torch.dtype, layout: Layout) -> list[float]:
    """The errors of this rank over the rows, as shares of what is allowed."""
    ring, rank, errors = RingAttention(mesh_of(Plan(cp=dist.get_world_size())), layout), dist.get_rank(), []
    for row in rows:
        mine = slice(row.bounds[rank], row.bounds[rank + 1])
        *leaves, dout = (x[:, mine].requires_grad_() for x in _inputs(row, dtype))
        out = ring(*leaves, sequence_of(row, rank))
        found = [x.detach() for x in (out, *torch.autograd.grad(out, leaves, dout))]
        exact, plain = _alone(row, torch.float64), _alone(row, dtype)
        for f, e, p in zip(found, exact, plain, strict=True):
            assert f.dtype == dtype and f.isfinite().all()
            errors.append(noise_of(f, e[:, mine], p, e))
    return errors


@pytest.mark.parametrize("layout", ["balanced", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ranks_compute_what_one_process_does(
    ranks: Callable[..., list[Any]], dtype: torch.dtype, layout: Layout
) -> None:
    drawn = random.Random(6)
    rows = [draw_row(drawn, 4) for _ in range(40 if dtype == torch.float64 else 10)]
    for errors in ranks(4, _against_one_process, rows, dtype, layout):
        assert max(errors) <= 1
