"""The watchdog: a rank that hangs or has died is named by the others, with the phase in which it stopped.

Collectives make every rank wait for the slowest, so one that stops for good stops all of them without a word. Each rank
therefore has a thread that writes, every few moments, where the rank is into the store that the ranks share, and that
reads all places once its own has not changed for too long. Then the process ends, for torchrun to start all ranks anew.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Self

import torch.distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage] - documented, not in __all__

from leyden.core.errors import Interrupted, UserError
from leyden.parallel.launcher import EXIT_CODE
from leyden.parallel.rank_group import RankGroup, RankPosition

_MOST_SECONDS_BETWEEN_BEATS = 1.0
_BEATS_PER_TIMEOUT = 20
_SILENT_BEATS = 5
"""A rank of which nothing is heard for so many beats is gone."""
_SPARE_BEATS = 3
"""So long before the timeout the name is out. The error of a collective, which names nobody, comes later."""

_WAITING = ("/torch/distributed/", "/leyden/parallel/")
"""Where a thread's innermost function is while it waits for other ranks."""


@dataclass(frozen=True)
class Report:
    """What a rank says of itself.

    Attributes:
        beat: how many reports came before.
        place: where it is.
        line: the innermost line of its main thread.
        waits: whether that line waits for other ranks.
        ended: with which error it ended; ``""`` without one; None: it has not.
    """

    beat: int
    place: RankPosition
    line: str
    waits: bool
    ended: str | None = None

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: bytes) -> "Report":
        """From JSON."""
        values = json.loads(text)
        return cls(**values | {"place": RankPosition(**values["place"])})

    def __str__(self) -> str:
        return f"{self.place} ({self.line})"


class Watchdog:
    """Watches over a group inside the ``with``; nothing happens where a rank is alone.

    Where the body raises what came of another rank's end, that rank is named and the process ends.

    Args:
        rank_group: whose ``place`` is watched; its ranks have a store (:func:`leyden.parallel.start_ranks`).
        end: ends the process, given the exit code.
    """

    def __init__(self, rank_group: RankGroup, end: Callable[[int], None] = os._exit) -> None:
        self._team, self._end = rank_group, end
        self._main = threading.get_ident()
        self._stop = threading.Event()
        self._beat, self._ended = 0, None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if rank_group.mesh is None or rank_group.alone:
            return
        assert rank_group.mesh.store is not None, "start_ranks gives one"
        # A client of its own: a main thread that waits for a key would hold up the thread that shares its client.
        clone = rank_group.mesh.store.clone()  # pyright: ignore[reportAttributeAccessIssue] - documented, not in the stub
        self._store = PrefixStore("watchdog", clone)
        self._world = rank_group.mesh.plan.world
        self._timeout = rank_group.mesh.plan.settings.timeout_seconds
        self._pause = min(_MOST_SECONDS_BETWEEN_BEATS, self._timeout / _BEATS_PER_TIMEOUT)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._thread is None:
            return
        defect = isinstance(error, Exception) and not isinstance(error, UserError | Interrupted)
        if defect and threading.current_thread() is threading.main_thread():
            # torchrun sends it to all ranks as soon as one is gone, and there are 30 s to say which.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._ended = "" if error is None else f"{type(error).__name__}: {error}"
        with contextlib.suppress(dist.DistError):  # the store is gone, and torchrun with it
            before = self._reports()
            self._report()
            if defect:
                self._name(_gone(before, self._later(), self._world) or _failed(before))
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        """The thread: a report a beat, and a look at all of them once this rank's place does not change."""
        place, since = self._team.place, time.monotonic()
        still = self._timeout - (_SILENT_BEATS + _SPARE_BEATS) * self._pause
        with contextlib.suppress(dist.DistError):
            self._report()
            while not self._stop.wait(self._pause):
                self._report()
                if self._team.place is not place or self._ended is not None:
                    place, since = self._team.place, time.monotonic()
                elif time.monotonic() - since > still:
                    before = self._reports()
                    after = self._later()
                    if self._team.place is place:
                        self._name(_gone(before, after, self._world) or _failed(after) or _behind(after))
                        return

    def _report(self) -> None:
        with self._lock:
            line, waits = _innermost(self._main)
            report = Report(self._beat, self._team.place, line, waits, self._ended)
            self._beat += 1
            self._store.set(str(self._team.rank), report.dumps())

    def _reports(self) -> dict[int, Report]:
        """Of every rank that has reported."""
        keys = {rank: str(rank) for rank in range(self._world)}
        return {rank: Report.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}

    def _later(self) -> dict[int, Report]:
        """The reports after enough time to hear from every rank that lives."""
        for _ in range(_SILENT_BEATS):
            time.sleep(self._pause)
            self._report()
        return self._reports()

    def _name(self, blamed: Mapping[int, str]) -> None:
        """Say who is to blame, unless nobody is or another rank has said so already, and end the process."""
        if not blamed:
            return
        if self._store.add("named", 1) == 1:
            lines = [f"  rank {rank} {reason}" for rank, reason in blamed.items()]
            _write("\n".join([f"The run stops (rank {self._team.rank} says so):", *lines]))
        if self._team.rank in blamed:
            _write(f"Rank {self._team.rank} is here:")
            faulthandler.dump_traceback(2)
        self._end(EXIT_CODE)


def _gone(before: Mapping[int, Report], after: Mapping[int, Report], world: int) -> dict[int, str]:
    """The ranks that have not reported in between: killed, or stopped; or that have never come here."""
    absent = {rank: "has not come as far as training" for rank in range(world) if rank not in after}
    silent = {rank: r for rank, r in after.items() if rank in before and r.beat == before[rank].beat}
    return absent | {
        rank: f"gives no sign of life; it was last at {r}" for rank, r in silent.items() if r.ended is None
    }


def _failed(reports: Mapping[int, Report]) -> dict[int, str]:
    """The ranks that ended with an error."""
    return {rank: f"ended at {report} with {report.ended}" for rank, report in reports.items() if report.ended}


def _behind(reports: Mapping[int, Report]) -> dict[int, str]:
    """The ranks for which the others wait."""
    furthest = max(report.place.count for report in reports.values())
    late = {rank: r for rank, r in reports.items() if r.place.count < furthest} or dict(reports)
    busy = {rank: r for rank, r in late.items() if not r.waits} or late
    return {rank: f"{'waits' if report.waits else 'hangs'} at {report}" for rank, report in busy.items()}


def _innermost(thread: int) -> tuple[str, bool]:
    """Where a thread is, in one line, and whether that is a wait for other ranks."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "", False
    code = frame.f_code
    waits = any(part in code.co_filename for part in _WAITING) and code.co_filename != __file__
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}", waits


def _write(text: str) -> None:
    """To standard error, past every lock that a main thread may hold."""
    os.write(2, f"{text}\n".encode())
