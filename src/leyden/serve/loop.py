"""The engine in a thread of its own, with requests from asyncio."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import torch

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.serve.engine import Engine
from leyden.serve.request import Delta, QueueFullError, Request
from leyden.serve.sampling import Sampling
from leyden.serve.statistics import Statistics
from leyden.serve.threads import Threads, fulfil

T = TypeVar("T")

_MAX_GRAMMARS = 16
"""That are compiled or wait for it; each takes up to 5 s."""
_END_SECONDS = 10
"""How long a drain waits for the last step to end."""


class EngineLoop:
    """Steps an engine while it has something to do, and sleeps while it has not.

    Args:
        engine: belongs to the loop from :meth:`start` on.

    Attributes:
        alive: False once a step has failed for a reason unknown; every request has then ended with an error.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.alive = True
        self._open = False
        self._subscriptions: dict[str, Subscription] = {}
        self._between: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._behind = Threads("after the engine", 1)
        self._grammars = Threads("grammars", 1)
        self._num_grammars = 0

    @property
    def ready(self) -> bool:
        """Whether requests are taken: from the start to the drain, while the engine has its memory."""
        return self._open and not self.engine.released

    @property
    def statistics(self) -> Statistics:
        """What the engine has done and holds."""
        return self.engine.statistics

    def start(self) -> None:
        """Begin to work."""
        self._open = True
        self._thread.start()

    async def prepare(self, sampling: Sampling) -> object:
        """See to what takes up to seconds before a request can be taken: its grammar.

        Grammars are compiled one after the other in a thread of their own, and nothing else waits for them. Whoever
        stops waiting gives up the place in the queue.

        Returns:
            What is to be kept until the request is submitted.

        Raises:
            QueueFullError: too many grammars wait.
            UserError: it cannot be compiled.
        """
        if self.engine.is_prepared(sampling):
            return self.engine.prepare(sampling)
        if self._num_grammars >= _MAX_GRAMMARS:
            raise QueueFullError(
                f"{self._num_grammars} grammars are being compiled or wait for it, the most that may; ask again later."
            )
        self._num_grammars += 1
        try:
            return await self._grammars.run(self.engine.prepare, sampling)
        finally:
            self._num_grammars -= 1

    def submit(self, request: Request) -> "Subscription":
        """Take a request; from a coroutine, whose event loop gets the deltas.

        Returns:
            An iterator over the deltas. Closing it ends the request within a step.

        Raises:
            QueueFullError: too many wait, or none are taken at the moment.
            UserError: it can never be answered.
        """
        subscription = Subscription(request, asyncio.get_running_loop(), self._leave)
        with self._changed:
            if not self.ready:
                raise QueueFullError(
                    "no requests are taken: the engine is not running, is about to end, or has no memory."
                )
            # Before it is added: a step may be quicker than this thread, and a fault ends all that is known.
            known = self._subscriptions.setdefault(request.id, subscription)
        try:
            self.engine.add(request)
        except BaseException:
            if known is subscription:
                self._subscriptions.pop(request.id, None)
            raise
        with self._changed:
            self._changed.notify_all()
        return subscription

    def between_steps(self, work: Callable[[Engine], T]) -> Awaitable[T]:
        """``work`` of the engine, in its thread while no step runs; awaited, it gives its result or raises."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

        with self._changed:
            if not self._stopped and self.alive:
                self._between.append(lambda: fulfil(outcome, lambda: work(self.engine)))
                self._changed.notify_all()
                return asyncio.wrap_future(outcome)
        return self._behind.run(self._after_all, work)

    def _after_all(self, work: Callable[[Engine], T]) -> T:
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            raise UserError("the engine is in the midst of a step that does not end; nothing more is done with it.")
        return work(self.engine)

    def drain(self, timeout: float) -> None:
        """Take no more requests, wait until all have ended, stop the thread, and close the engine.

        Args:
            timeout: in seconds; requests that have not ended by then are, with the reason ``"aborted"``.
        """
        self._open = False
        with self._changed:
            self._changed.wait_for(lambda: not self._subscriptions, timeout)
            self._end_all("aborted")
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)
        self.engine.close()

    def _leave(self, request: Request) -> None:
        with self._changed:
            if self._subscriptions.pop(request.id, None) is not None:
                self.engine.abort(request.id)
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            with torch.cuda.device_of(self.engine.model.norm.weight):  # each thread has a current GPU of its own
                while self._wait():
                    entered = self._run_between()
                    if self.engine.busy:
                        self._deliver(self.engine.step(entered=entered))
                self.engine.abort_now(())  # those that the drain has ended
        except BaseException as fault:  # a library's panic is no Exception, and nobody else would hear of it
            logger(__name__).exception("the engine has stopped")
            self.alive = self._open = False
            with self._changed:
                self._end_all("error", f"the engine has stopped: {type(fault).__name__}")
                self._changed.notify_all()
        self._run_between()

    def _run_between(self) -> bool:
        """Whether there was something that ran."""
        ran = bool(self._between)
        while self._between:
            self._between.popleft()()
        return ran

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when there will be nothing any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._between or self.engine.busy)
            return not self._stopped

    def _deliver(self, deltas: list[Delta]) -> None:
        """Hand each event loop all that is for it, in one call."""
        if not deltas:
            return
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Subscription, Delta, bool]]] = {}
        with self._changed:
            for delta in deltas:
                subscription = self._subscriptions.get(delta.request)
                if subscription is None:
                    continue
                subscription.left -= delta.finish_reason is not None
                items = by_loop.setdefault(subscription.loop, [])
                items.append((subscription, delta, not subscription.left))
                if not subscription.left:
                    del self._subscriptions[delta.request]
                    self._changed.notify_all()
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:  # it was closed with requests open
                for subscription, _, _ in items:
                    self._leave(subscription.request)

    def _end_all(self, reason: Any, error: str | None = None) -> None:
        for id, subscription in list(self._subscriptions.items()):
            self.engine.abort(id)
            last = Delta(id, finish_reason=reason, error=error)
            with contextlib.suppress(RuntimeError):  # its event loop was closed
                subscription.loop.call_soon_threadsafe(_hand_over, [(subscription, last, True)])
        self._subscriptions.clear()


class Subscription(AsyncGenerator[Delta, None]):
    """The deltas of one request, for one reader.

    Args:
        request: which.
        loop: that of the reader.
        leave: called when the reader closes it.

    Attributes:
        left: completions that have not ended; for the engine's thread.
    """

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop, leave: Callable[[Request], None]) -> None:
        self.request = request
        self.loop = loop
        self.left = request.sampling.n
        self._leave = leave
        self._deltas: deque[Delta] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over = False

    def push(self, delta: Delta, is_last: bool) -> None:
        """A delta has come; in the event loop's thread."""
        if self._over:
            return
        self._deltas.append(delta)
        self._over = is_last
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def asend(self, value: None) -> Delta:
        """The next delta."""
        while not self._deltas:
            if self._over:
                raise StopAsyncIteration
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._deltas.popleft()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> Delta:
        """Close it, and raise."""
        await self.aclose()
        raise typ if val is None else val

    async def aclose(self) -> None:
        """End the request, if it goes on."""
        self._over = True
        self._deltas.clear()
        self._wake()
        self._leave(self.request)


def _hand_over(items: list[tuple[Subscription, Delta, bool]]) -> None:
    for subscription, delta, is_last in items:
        subscription.push(delta, is_last)
