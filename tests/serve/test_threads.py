"""Threads for an event loop: whatever work raises comes back, cancelled work is not begun, none is waited for."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from leyden.serve import threads
from leyden.serve.threads import Threads, WorkError


class Panic(BaseException):
    """As Rust libraries raise."""


_NO_ORDINARY_ONES = (
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    asyncio.CancelledError,
    Panic,
)


@pytest.mark.parametrize("kind", [*_NO_ORDINARY_ONES, ValueError, MemoryError, RecursionError])
def test_whatever_is_raised_comes_back(kind: type[BaseException]) -> None:
    def work() -> None:
        raise kind("why")

    async def run() -> None:
        threads = Threads("test", 1)
        expected = WorkError if kind in _NO_ORDINARY_ONES else kind
        with pytest.raises(expected, match="why"):
            await asyncio.wait_for(threads.run(work), 10)
        assert await threads.run(lambda: 5) == 5

    asyncio.run(run())


def test_work_waits_for_no_more_than_the_threads_there_are() -> None:
    free = threading.Event()

    async def run() -> None:
        threads = Threads("test", 2)
        stuck = asyncio.create_task(threads.run(free.wait))
        for number in range(20):  # one is always free
            assert await asyncio.wait_for(threads.run(lambda number=number: number), 10) == number
        also_stuck = asyncio.create_task(threads.run(free.wait))
        dropped: list[int] = []
        late = asyncio.create_task(threads.run(dropped.append, 1))
        await asyncio.sleep(0.01)
        late.cancel()
        await asyncio.sleep(0)
        free.set()
        await asyncio.gather(stuck, also_stuck)
        assert await threads.run(dropped.copy) == []

    asyncio.run(run())


def test_the_end_of_the_process_waits_for_none() -> None:
    script = (
        "import asyncio, runpy, sys, threading; Threads = runpy.run_path(sys.argv[1])['Threads']\n"
        "async def run():\n"
        "    asyncio.create_task(Threads('stuck', 1).run(threading.Event().wait)); await asyncio.sleep(0.05)\n"
        "asyncio.run(run())"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script, threads.__file__], check=True, timeout=60)
    assert time.monotonic() - began < 50
