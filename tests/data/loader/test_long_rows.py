"""Rows of a million tokens: one document fills one, long ones are not starved, and memory is that of a few rows."""

import tracemalloc

import numpy as np
import pytest

from leyden.data.loader.mixed import MixedBatches
from leyden.data.loader.mixture_schedule import MixtureSchedule
from leyden.data.loader.packing import PackedBatches

MILLION = 1 << 20


def _mixture(lengths: list[float], bounds: list[int]) -> MixtureSchedule:
    table = {"point": [{"weights": {"text": 1}, "lengths": lengths}], "length_bounds": bounds}
    return MixtureSchedule.parse(table, "test")


@pytest.mark.parametrize("lengths", [[0.3, 0.7, 0], [0.35, 0.35, 0.3], [0.3, 0.3, 0.4]])
def test_each_class_has_its_share_at_any_moment(numbered, lengths):
    """Table 6 in small, with one long document in fifty: after every row, shares are the asked ones within a row."""
    generator = np.random.default_rng(0)
    drawn = ((1, 33, 500), (33, 129, 60), (129, 1025, 12))
    sizes = np.concatenate([generator.integers(*bounds) for bounds in drawn])
    mixture = _mixture(lengths, [32, 128]).timed(1 << 20)
    batches = MixedBatches({"text": numbered(sizes.tolist())}, mixture, seq_len=1024, batch_tokens=1024, seed=0)
    asked = dict(zip((0, 32, 128), lengths, strict=True))
    for rows in range(1, 120):
        for part in batches.plan(rows):
            share = asked[part.longer_than]
            assert abs(part.sequences - share * rows) <= 1
            assert abs(part.tokens - share * rows * 1024) <= 1024 * (1 + 0.01 * rows * share)


def test_a_document_of_a_whole_row_and_longer_ones(numbered):
    """A row has one document and no padding; a longer one goes on in rows of its own, and its rest shares a row."""
    shards = numbered([MILLION, 2 * MILLION + 5, 100, MILLION - 105])
    batches = PackedBatches(shards, seq_len=MILLION, batch_tokens=MILLION, seed=0, packing="best_fit")
    rows = [batches.batch(number) for number in range(4)]
    whole = [row for row in rows if row.cu_seqlens.tolist() == [0, MILLION]]
    assert len(whole) == 3
    assert all((row.tokens[0].diff() == 1).all() for row in whole)
    (shared,) = (row for row in rows if len(row.cu_seqlens) > 2)
    assert sorted(shared.cu_seqlens.diff().tolist()) == [5, 100, MILLION - 105]
    goes_on = [row for row in whole if int(row.labels[0, -1]) != -100]
    assert len(goes_on) == 2  # the label behind a cut is the token that follows it


def test_a_row_of_a_million_tokens_takes_the_memory_of_a_few(numbered):
    shards = numbered([3 * MILLION, *[4000] * 800])
    mixture = _mixture([0.5, 0.5], [32_768]).timed(100 * MILLION)
    batches = MixedBatches({"text": shards}, mixture, seq_len=MILLION, batch_tokens=MILLION, seed=0)
    batches.batch(0)
    row_bytes = MILLION * 8
    tracemalloc.start()
    for number in range(1, 3):
        batches.batch(number)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * row_bytes
