"""One document that fills whole rows, from the loader to ranks that share them: one process's loss and gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from one_process import TWO_LAYERS, WINDOWED
from test_exactness import Alone, check, differences, named, one_process

from leyden.data import Batch, PackedBatches, shards_in_memory
from leyden.parallel import Plan
from leyden.train import Pretrain

ROW = 61
"""Tokens of a row: no number of ranks divides it."""


def batches(rows: int) -> PackedBatches:
    """Of a document of two rows and nine tokens, and short ones; ``rows`` a micro-batch."""
    draws = np.random.default_rng(5)
    documents = [draws.integers(0, 101, length) for length in (2 * ROW + 9, 20, 31)]
    shards = shards_in_memory(documents, vocab_size=101)
    return PackedBatches(shards, seq_len=ROW, batch_tokens=ROW * rows, seed=0, packing="best_fit")


def whole_rows(rows: int) -> list[Batch]:
    """The micro-batches of an epoch, all of them that the document fills."""
    given = [batches(rows).batch(number) for number in range(4)]
    return [batch for batch in given if batch.cu_seqlens.diff().tolist() == [ROW] * rows]


def worst(plan: Plan, changes: dict[str, Any], alone: Alone) -> dict[str, float]:
    """The largest differences between this plan's ranks and one process."""
    made = batches(plan.dp)
    shares = [[made.share(number, rank, plan.dp) for rank in range(plan.dp)] for number in range(4)]
    filled = [rows for rows in shares if all(row.cu_seqlens.tolist() == [0, ROW] for row in rows)]
    return differences(Pretrain(), plan, changes, filled, alone)


def test_the_loader_fills_rows_with_the_document() -> None:
    """Two rows an epoch, of which the second goes on where the first ends, and both predict what follows them."""
    rows = whole_rows(1)
    assert len(rows) >= 2
    assert int(rows[0].labels[0, -1]) == int(rows[1].tokens[0, 0])
    for row in rows:
        assert row.labels[0, :-1].equal(row.tokens[0, 1:])
        assert (row.labels >= 0).all()


@pytest.mark.parametrize(
    ("plan", "changes"),
    [
        (Plan(cp=2), TWO_LAYERS),
        pytest.param(Plan(cp=2), WINDOWED, marks=pytest.mark.slow),
        pytest.param(Plan(cp=4), TWO_LAYERS, marks=pytest.mark.slow),
        pytest.param(Plan(cp=4), WINDOWED, marks=pytest.mark.slow),
    ],
    ids=named,
)
def test_ranks_that_share_the_document_are_one(
    ranks: Callable[..., list[Any]], plan: Plan, changes: dict[str, Any]
) -> None:
    alone = one_process(Pretrain(), changes, whole_rows(plan.dp))
    check(ranks(plan.world, worst, plan, changes, alone))
