"""The local pool starts as many runs as cores and memory allow, by what the runs before were seen to use."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leyden.study import executors
from leyden.study.executors import Job, LocalPool

GIB = 2**30


class Process:
    """A run of which memory and age are said."""

    def __init__(self, age: float, peak: int, resident: int, code: int | None = None) -> None:
        self.age_seconds, self.peak, self.resident, self.code = age, peak, resident, code

    def poll(self) -> int | None:
        return self.code

    def age(self) -> float:
        return self.age_seconds

    def peak_bytes(self) -> int:
        return self.peak

    def resident_bytes(self) -> int:
        return self.resident


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> LocalPool:
    monkeypatch.setattr(executors.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(executors, "available_bytes", lambda: 10 * GIB)
    return LocalPool(threads=2)


def running(pool: LocalPool, *processes: Process) -> None:
    pool._running = list(processes)  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


def test_the_first_run_is_alone_until_it_has_shown_what_it_uses(pool: LocalPool) -> None:
    assert pool.has_room()
    running(pool, Process(age=1, peak=GIB, resident=GIB))
    assert not pool.has_room()
    running(pool, Process(age=60, peak=GIB, resident=GIB))
    assert pool.has_room()


def test_no_more_runs_than_cores_for_their_threads(pool: LocalPool) -> None:
    running(pool, *(Process(60, GIB, GIB) for _ in range(3)))
    assert pool.has_room()
    running(pool, *(Process(60, GIB, GIB) for _ in range(4)))
    assert not pool.has_room()


@pytest.mark.parametrize(("resident", "room"), [(5 * GIB, True), (3 * GIB, False)])
def test_memory_that_running_ones_will_still_take_is_not_given_away(pool: LocalPool, resident: int, room: bool) -> None:
    """10 GiB are free, a run takes 5, so that 6.25 are kept for the next: what is left is for the one that grows."""
    running(pool, Process(60, 5 * GIB, 5 * GIB), Process(60, resident, resident), Process(1, 0, 3 * GIB))
    assert pool.has_room() == room


def test_a_run_that_ended_well_is_remembered(pool: LocalPool) -> None:
    running(pool, Process(1, 9 * GIB, 0, code=0))
    assert pool.has_room()
    running(pool, Process(1, GIB, GIB))
    assert not pool.has_room()


@pytest.fixture
def signals_end_children() -> Iterator[None]:
    """Children inherit an ignored SIGTERM, which a test before this one may have left behind in this process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("signals_end_children")
def test_a_process_writes_its_log_and_tells_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$* with $OMP_NUM_THREADS"\n[ "$3" = sleep ] && exec sleep 60\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    ends = LocalPool(1).start(Job("a", ("fail",), tmp_path / "logs" / "a.txt", threads=3))
    while ends.poll() is None:
        time.sleep(0.01)
    assert (ends.poll(), (tmp_path / "logs" / "a.txt").read_text()) == (3, "-m leyden fail with 3\n")
    endless = LocalPool(1).start(Job("b", ("sleep",), tmp_path / "b.txt", threads=1))
    assert endless.poll() is None
    endless.stop()
    assert endless.poll() == -15
