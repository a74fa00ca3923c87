"""A model that sees, on several ranks: loss and every gradient are those of one process, on every parallel axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from one_process import Row
from test_exactness import Alone, differences, joined, one_process, rows_of

from leyden.model.vision import Pictures
from leyden.parallel import ParallelConfig, Plan, make_plan
from leyden.train import Pretrain

PATCHES = 4
SEES: dict[str, Any] = {
    "vision": {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 4,
        "patch_size": 2,
        "image_token_id": 5,
        "image_grid_pinpoints": (),
    }
}
PLANS = {
    "shards": ParallelConfig(dp_shard=2),
    "context": ParallelConfig(cp=2),
    "tensor": ParallelConfig(tp=2),
    "pipeline": ParallelConfig(pp=2),
}
MORE = {
    "context and tensor": ParallelConfig(cp=2, tp=2),
    "shards and experts": ParallelConfig(dp_shard=4, ep=2),
    "pipeline and context": ParallelConfig(pp=2, cp=2),
}


@dataclass(frozen=True)
class SeeingRow(Row):
    """A row with pictures."""

    pictures: Pictures


def _seeing(row: Row, seed: int, *, blind: bool) -> SeeingRow:
    """Tiles in the first third of a row, so that a context rank has none; or no tile at all."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(16, generator=generator)[: 0 if blind else 7]
    num_tiles = 0 if blind else 3
    tiles = torch.randn(num_tiles, 3, 4, 4, generator=generator, dtype=torch.float64)
    rows = torch.randint(-1, max(1, num_tiles * PATCHES), places.shape, generator=generator)
    return SeeingRow(row.tokens, row.labels, row.cu_seqlens, Pictures(tiles, rows, places))


def _micro_batches(plan: Plan) -> list[list[SeeingRow]]:
    """Of each, the row of every data rank; every other one has no picture."""
    batches = [rows_of(plan, n) for n in range(2 * plan.pp)]
    return [
        [_seeing(row, 10 * n + rank, blind=(n + rank) % 2 == 1) for rank, row in enumerate(rows)]
        for n, rows in enumerate(batches)
    ]


def _joined(rows: list[SeeingRow]) -> SeeingRow:
    whole, length = joined(list(rows)), rows[0].tokens.shape[1]
    parts = [Pictures(r.pictures.tiles, r.pictures.rows, r.pictures.places + n * length) for n, r in enumerate(rows)]
    return SeeingRow(whole.tokens, whole.labels, whole.cu_seqlens, Pictures.joined(parts, PATCHES))


def _worst(plan: Plan, alone: Alone) -> dict[str, float]:
    return differences(Pretrain(), plan, SEES, _micro_batches(plan), alone)


def _check(settings: ParallelConfig, world: int, ranks: Callable[..., list[Any]]) -> None:
    plan = make_plan(settings, world)
    alone = one_process(Pretrain(), SEES, [_joined(rows) for rows in _micro_batches(plan)])
    seen = [name for name in alone[1] if name.startswith("vision.") and alone[1][name].abs().max() > 1e-6]
    assert len(seen) > 30, "the gradients of the tower are what is compared"
    for found in ranks(world, _worst, plan, alone):
        # A softmax does not see what is added to all of its scores: this gradient is zero but for rounding.
        worst = max(value for name, value in found.items() if not name.endswith("k_proj.bias"))
        assert worst < 1e-7, found  # the routers' load is float32


@pytest.mark.parametrize("name", PLANS)
def test_two_ranks(name: str, ranks: Callable[..., list[Any]]) -> None:
    _check(PLANS[name], 2, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_four_ranks(name: str, ranks: Callable[..., list[Any]]) -> None:
    _check(MORE[name], 4, ranks)
