"""The batch size of every step: what the paper's schedule comes to, and a step-by-step twin of all that is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leyden.train.batch_schedule import BatchChange, BatchSchedule


def test_one_size() -> None:
    schedule = BatchSchedule.of(8192, 2048)
    assert [schedule.tokens_at(step) for step in (0, 1, 10**9)] == [8192] * 3
    assert schedule.micro_batches_at(7) == 4
    assert schedule.tokens_before(5) == 5 * 8192
    assert [schedule.steps_for(tokens) for tokens in (1, 8192, 8193)] == [1, 1, 2]
    assert BatchSchedule.of(100, 8192).micro_batch_tokens == 100


def test_the_papers_schedule() -> None:
    """16M tokens a step, doubled after 69B, 790B and 4.7T; 7.2T tokens in all."""
    sizes = [2**24, 2**25, 2**26, 2**27]
    schedule = BatchSchedule.of(tuple(zip((0, 69 * 10**9, 790 * 10**9, 4_700 * 10**9), sizes, strict=True)), 2**24)
    assert [change.batch_tokens for change in schedule.changes] == sizes
    for change, mark in zip(schedule.changes[1:], (69e9, 790e9, 4.7e12), strict=True):
        assert mark <= change.tokens_before < mark + 2**26
        assert schedule.tokens_before(change.step) == change.tokens_before
        assert schedule.tokens_at(change.step - 1) * 2 == change.batch_tokens
    steps = schedule.steps_for(7_200 * 10**9)
    assert schedule.tokens_before(steps) >= 7.2e12 > schedule.tokens_before(steps - 1)
    assert sum(count for _, count in schedule.within(steps)) == steps


marks = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), max_size=4)


@given(marks, st.integers(1, 5), st.integers(1, 4))
def test_as_step_by_step(apart: list[tuple[int, int]], first: int, micro_batch: int) -> None:
    pairs = [(0, first * micro_batch)]
    for gap, size in apart:
        pairs.append((pairs[-1][0] + gap, size * micro_batch))
    schedule = BatchSchedule(tuple(pairs), micro_batch)
    tokens, sizes = 0, []
    for step in range(80):
        size = [size for mark, size in pairs if mark <= tokens][-1]
        assert schedule.tokens_before(step) == tokens
        assert schedule.tokens_at(step) == size == schedule.micro_batches_at(step) * micro_batch
        assert schedule.steps_for(tokens) == step and schedule.steps_for(tokens + 1) == step + 1
        sizes.append(size)
        tokens += size
    for steps in (1, 7, 80):
        parts = [(change.batch_tokens, count) for change, count in schedule.within(steps)]
        assert [size for size, count in parts for _ in range(count)] == sizes[:steps]


def test_a_size_between_two_marks_of_one_step_is_never_taken() -> None:
    schedule = BatchSchedule(((0, 10), (11, 20), (12, 30)), 10)
    assert schedule.changes == (BatchChange(0, 0, 10), BatchChange(2, 20, 30))


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ((), "the first is at 0 tokens"),
        (((5, 8),), r"the first is at 0 tokens.*given marks at \[5\]"),
        (((0, 8), (9, 8), (9, 16)), r"the others rise.*given marks at \[0, 9, 9\]"),
        (((0, 8), (9, 18)), r"batch_tokens \(18\) must be a multiple of micro_batch_tokens \(8\).* 16 and 24"),
    ],
)
def test_schedules_that_cannot_be(marks: tuple[tuple[int, int], ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BatchSchedule(marks, 8)
