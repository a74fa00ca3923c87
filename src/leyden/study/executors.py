"""Where the runs of a grid are carried out: a literal table of executors behind one small interface."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_SETTLING_SECONDS = 10.0
"""A run has loaded its libraries and taken a step by then on most machines, and shows how much memory it needs."""
_RESERVE = 1.25
"""Memory that is kept free for a run, as a multiple of the largest that one was seen to use."""


@dataclass(frozen=True)
class Job:
    """One process to run.

    Attributes:
        key: of its point.
        arguments: of ``leyden``.
        log: gets what it prints.
        threads: that it may use.
    """

    key: str
    arguments: tuple[str, ...]
    log: Path
    threads: int


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """None while it runs; then its exit code, negative the signal that killed it."""
        ...

    def stop(self) -> None:
        """Ask it to save and end, and wait until it has."""
        ...


class Executor(Protocol):
    """Starts jobs, as many at once as it says it has room for."""

    def has_room(self) -> bool:
        """Whether another job can be started now."""
        ...

    def start(self, job: Job) -> Running:
        """Start it."""
        ...

    def describe(self) -> str:
        """Where and how many at once, in words."""
        ...


class LocalPool:
    """Processes on this machine: as many as there are cores for, and memory by what runs so far were seen to use.

    Until a run has ended, or has taken its time to load and begin, it runs alone.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._slots = max(1, len(os.sched_getaffinity(0)) // threads)
        self._running: list[_Process] = []
        self._peak_bytes = 0

    def has_room(self) -> bool:
        """By cores, then by memory."""
        telling = [one for one in self._running if one.poll() == 0 or one.age() >= _SETTLING_SECONDS]
        self._peak_bytes = max(self._peak_bytes, *(one.peak_bytes() for one in telling), 0)
        self._running = [one for one in self._running if one.poll() is None]
        if not self._running:
            return True
        if len(self._running) >= self._slots or not self._peak_bytes:
            return False
        growing = sum(max(0, self._peak_bytes - one.resident_bytes()) for one in self._running)
        return available_bytes() > _RESERVE * self._peak_bytes + growing

    def start(self, job: Job) -> Running:
        """As a process of its own, which a Ctrl-C in the terminal does not reach."""
        process = _Process(job)
        self._running.append(process)
        return process

    def describe(self) -> str:
        """Where and how many."""
        return (
            f"this machine, at most {self._slots} at once, with {self._threads} thread{'s'[: self._threads != 1]} each"
        )


class _Process:
    """A job as a child process."""

    def __init__(self, job: Job) -> None:
        threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "leyden", *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | threads,
                start_new_session=True,
            )
        self._started, self._peak = time.monotonic(), 0

    def poll(self) -> int | None:
        self.peak_bytes()  # which is gone once the process has ended
        return self._process.poll()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def age(self) -> float:
        return time.monotonic() - self._started

    def peak_bytes(self) -> int:
        self._peak = max(self._peak, _status_bytes(self._process.pid, "VmHWM"))
        return self._peak

    def resident_bytes(self) -> int:
        return _status_bytes(self._process.pid, "VmRSS")


def _status_bytes(pid: int, field: str) -> int:
    """A line of ``/proc/PID/status`` in bytes; 0 where there is none."""
    return _kib(Path(f"/proc/{pid}/status"), field)


def available_bytes() -> int:
    """Memory that new processes can have without swapping; where the system does not say, all there is."""
    return _kib(Path("/proc/meminfo"), "MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kib(path: Path, field: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * 1024 if values else 0


EXECUTORS: dict[str, Callable[[int], Executor]] = {"local": LocalPool}
"""By the name that ``--executor`` takes; each is made with the threads of a run."""
