"""Who is named when ranks wait for one that hangs or is gone. The ranks are threads, each with its own group."""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from leyden.core.errors import UserError
from leyden.parallel import Mesh, ParallelConfig, Plan, RankGroup, Watchdog, rank_group, watchdog
from leyden.parallel.launcher import EXIT_CODE
from leyden.parallel.rank_group import RankPosition
from leyden.parallel.watchdog import Report

TIMEOUT_SECONDS = 4.0


class Ranks:
    """Ranks that share a store; each runs a body of its own under a watchdog.

    Attributes:
        ended: the exit code with which a watchdog ended each process, and after how many seconds.
        raised: what came out of each body.
        said: everything that was written to standard error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.released = HashStore(), threading.Event()
        self.ended: dict[int, tuple[int, float]] = {}
        self.raised: dict[int, BaseException] = {}
        self.said = ""
        monkeypatch.setattr(watchdog, "_write", self._hear)
        monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda file: self._hear("(all threads)"))

    def _hear(self, text: str) -> None:
        self.said += text + "\n"

    def rank_group(self, rank: int, world: int) -> RankGroup:
        plan = Plan(dp_shard=world, settings=ParallelConfig(timeout_seconds=TIMEOUT_SECONDS))
        everyone = cast("Any", object())  # no collective is called
        return RankGroup(Mesh(plan, rank, torch.device("cpu"), {}, {"world": everyone}, {}, self.store))

    def run(self, *bodies: Callable[[RankGroup], None]) -> None:
        threads = [threading.Thread(target=self._run, args=(r, len(bodies), b)) for r, b in enumerate(bodies)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * TIMEOUT_SECONDS)
        assert not any(thread.is_alive() for thread in threads)

    def _run(self, rank: int, world: int, body: Callable[[RankGroup], None]) -> None:
        own, started = self.rank_group(rank, world), time.monotonic()

        def end(code: int) -> None:
            self.ended[rank] = code, time.monotonic() - started
            if len(self.ended) == world:
                self.released.set()

        try:
            with Watchdog(own, end):
                body(own)
        except BaseException as error:
            self.raised[rank] = error


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(monkeypatch)


def test_a_rank_that_hangs_is_named_within_the_timeout(ranks: Ranks) -> None:
    """All are at the same place; two of them wait in this package, as they would in a collective."""

    def wait(own: RankGroup) -> None:
        own.at("forward", 7, 1)
        rank_group._awaited(ranks.store, "released")

    def hang(own: RankGroup) -> None:
        own.at("forward", 7, 1)
        ranks.released.wait()
        ranks.store.set("released", "{}")

    ranks.run(wait, hang, wait)
    assert {rank: code for rank, (code, _) in ranks.ended.items()} == dict.fromkeys(range(3), EXIT_CODE)
    assert min(seconds for _, seconds in ranks.ended.values()) < TIMEOUT_SECONDS
    assert "rank 1 hangs at step 7, micro-batch 1, forward (" in ranks.said
    assert "in wait)" in ranks.said, "the line of its stack"
    assert "rank 0 hangs" not in ranks.said
    assert "rank 2 hangs" not in ranks.said
    assert ranks.said.count("The run stops") == 1
    assert ranks.said.count("(all threads)") == 1, "of the rank that hangs"


def test_a_rank_that_goes_on_is_left_alone(ranks: Ranks) -> None:
    def work(own: RankGroup) -> None:
        for step in range(24):
            own.at("forward", step)
            time.sleep(TIMEOUT_SECONDS / 20)

    ranks.run(work, work)
    assert (ranks.ended, ranks.raised, ranks.said) == ({}, {}, "")


def test_a_rank_that_is_gone_is_named_by_who_misses_it(ranks: Ranks) -> None:
    def miss(own: RankGroup) -> None:
        last = Report(3, RankPosition(9, 4, 0, "backward"), "experts.py:7 in forward", False)
        ranks.store.set("watchdog/1", last.dumps())
        raise RuntimeError("Connection closed by peer")

    ranks._run(0, 2, miss)
    assert ranks.ended[0][0] == EXIT_CODE
    assert (
        "rank 1 gives no sign of life; it was last at step 4, micro-batch 0, backward (experts.py:7 in forward)"
        in ranks.said
    )


def test_a_rank_that_failed_is_named_and_keeps_its_error(ranks: Ranks) -> None:
    failed = threading.Event()

    def fail(own: RankGroup) -> None:
        own.at("forward", 3)
        raise ValueError("no such expert")

    def miss(own: RankGroup) -> None:
        while "ValueError" not in ranks.store.get("watchdog/1").decode():
            failed.wait(0.01)
        raise RuntimeError("Connection closed by peer")

    ranks.run(miss, fail)
    assert list(ranks.ended) == [0]
    assert "rank 1 ended at step 3, micro-batch 0, forward (" in ranks.said
    assert "with ValueError: no such expert" in ranks.said
    assert str(ranks.raised[1]) == "no such expert"


def test_an_error_of_the_run_is_nobodys_fault(ranks: Ranks) -> None:
    def refuse(own: RankGroup) -> None:
        raise UserError("not finite in 3 steps in a row")

    ranks.run(refuse, refuse)
    assert (ranks.ended, ranks.said) == ({}, "")
    assert [str(ranks.raised[rank]) for rank in range(2)] == ["not finite in 3 steps in a row"] * 2


def test_a_rank_that_never_came_is_named(ranks: Ranks) -> None:
    def wait(own: RankGroup) -> None:
        own.at("forward", 1)
        ranks.released.wait(2 * TIMEOUT_SECONDS)

    def end(code: int) -> None:
        ranks.ended[0] = code, 0.0
        ranks.released.set()

    own = ranks.rank_group(0, 2)
    with Watchdog(own, end):
        wait(own)
    assert ranks.ended[0][0] == EXIT_CODE
    assert "rank 1 has not come as far as training" in ranks.said
    assert "rank 0" not in ranks.said.replace("(rank 0 says so)", "")


def _report(count: int, *, waits: bool) -> Report:
    return Report(0, RankPosition(count, 1, 0, "forward"), "x.py:1 in f", waits)


@pytest.mark.parametrize(
    ("reports", "blamed"),
    [
        ({0: _report(5, waits=True), 1: _report(4, waits=False)}, {1: "hangs"}),
        ({0: _report(5, waits=True), 1: _report(4, waits=True), 2: _report(4, waits=False)}, {2: "hangs"}),
        ({0: _report(5, waits=True), 1: _report(4, waits=True)}, {1: "waits"}),
        ({0: _report(5, waits=True), 1: _report(5, waits=True)}, {0: "waits", 1: "waits"}),
    ],
)
def test_who_is_to_blame(reports: dict[int, Report], blamed: dict[int, str]) -> None:
    """Who is behind; of those, who does not wait for anybody; and all, where nobody can be told from the others."""
    assert {rank: reason.split()[0] for rank, reason in watchdog._behind(reports).items()} == blamed


def test_alone_there_is_nothing_to_watch() -> None:
    threads = threading.active_count()
    with Watchdog(RankGroup()):
        assert threading.active_count() == threads


def test_a_report_survives_the_store() -> None:
    report = Report(2, RankPosition(3, 4, 1, "backward"), "x.py:1 in f", True, "ValueError: of ours")
    assert Report.loads(report.dumps().encode()) == report
