"""Thread pools of an event loop: an exception becomes an answer, and a thread that hangs delays no shutdown.

``asyncio.to_thread`` promises neither. A ``StopIteration`` cannot be put into a future, so that its caller waits for
ever; a panic of a Rust library is no ``Exception``; and Python's own pools are joined when the process ends.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_STOPS = (StopIteration, StopAsyncIteration, CancelledError)
"""Exceptions that mean something else to whoever awaits them."""


class WorkError(RuntimeError):
    """Work ended with what is no ordinary exception: a library's panic, ``StopIteration``, ``SystemExit``."""


def fulfil(outcome: Future[T], work: Callable[[], T]) -> None:
    """Do ``work``, and give ``outcome`` its result or what it raised; nothing, where ``outcome`` was cancelled."""
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        outcome.set_exception(carried(error))
    else:
        outcome.set_result(result)


def carried(error: BaseException) -> Exception:
    """``error`` as an exception that can be awaited and is caught as every other: itself, or a WorkError around it."""
    if isinstance(error, Exception) and not isinstance(error, _STOPS):
        return error
    wrapped = WorkError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


async def carry(work: Awaitable[T]) -> T:
    """What ``work`` gives, for a task of its own: it raises as :func:`carried` says, or is cancelled."""
    try:
        return await work
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise carried(error) from None


class Threads:
    """A pool of threads that the end of the process does not wait for; they start as they are needed.

    Args:
        name: of the threads, with a number.
        count: how many there are at most; further work waits, and is dropped when its caller is cancelled meanwhile.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name, self._count = name, count
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._started = 0

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What ``function`` returns, called in one of the threads.

        Raises:
            WorkError: it raised what is no ordinary exception; all others are raised as they are.
        """
        outcome: Future[T] = Future()
        self._work.put(partial(fulfil, outcome, partial(function, *arguments, **named)))
        with self._lock:
            self._unfinished += 1
            if self._started < min(self._unfinished, self._count):
                self._started += 1
                threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        return await asyncio.wrap_future(outcome)

    def _serve(self) -> None:
        while True:
            work = self._work.get()
            work()
            del work  # or what it holds would be kept until the next one comes
            with self._lock:
                self._unfinished -= 1
