"""Calls that are ended: loops, waiting, regular expressions, and those that catch what ends them."""

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.core.alarm import TimeIsUp, within
from leyden.core.limited import LimitedProcess

SECONDS = 0.15


def loops() -> None:
    while True:
        pass


def sleeps() -> None:
    time.sleep(60)


def waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=60)


def matches() -> None:
    re.fullmatch(r"(a+)+b", "a" * 60)


def catches_it() -> None:
    with contextlib.suppress(BaseException):  # what ends it among them
        loops()


def turns_it_into_an_error() -> None:
    try:
        loops()
    except BaseException:
        raise ValueError from None


@pytest.mark.parametrize("call", [loops, sleeps, waits_for_a_lock, matches, catches_it, turns_it_into_an_error])
def test_a_call_that_takes_too_long_is_ended(call: Callable[[], Any]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeIsUp, match=r"more than 0\.15 seconds"):
        within(SECONDS, call)
    assert signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def is_interrupted() -> None:
    raise KeyboardInterrupt  # as Ctrl-C does, which a shell's background processes never see


def test_what_returns_or_raises_in_time_does() -> None:
    assert within(60, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(60, lambda: {}[0])
    with pytest.raises(KeyboardInterrupt):
        within(60, is_interrupted)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_thread_has_no_limit() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(within(0.01, lambda: time.sleep(0.05) or 3)))
    thread.start()
    thread.join()
    assert found == [3]


def test_a_process_that_was_waited_for_does_not_answer_the_next_call(tmp_path: Path) -> None:
    source = tmp_path / "slow.py"
    source.write_text("import time\ndef make():\n    return lambda s: time.sleep(s) or s\n")
    process = LimitedProcess(source, seconds=60, memory_bytes=1 << 30)
    assert process.call(0) == 0
    with pytest.raises(TimeIsUp):
        within(SECONDS, lambda: process.call(0.5))
    assert process.call(0.01) == 0.01
    process.close()
