"""The protocol of the engine's loop, as the routes use it."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, TypeVar

from leyden.serve.engine import Engine
from leyden.serve.request import Delta, Request
from leyden.serve.sampling import Sampling
from leyden.serve.statistics import Statistics

T = TypeVar("T")


class Loop(Protocol):
    """The engine, as a server sees it (:class:`leyden.serve.loop.EngineLoop`)."""

    @property
    def alive(self) -> bool:
        """Whether it can still answer anything."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        ...

    @property
    def statistics(self) -> Statistics:
        """What it has done and holds."""
        ...

    def prepare(self, sampling: Sampling) -> Awaitable[object]:
        """See to what takes up to seconds before a request can be taken; gives what is to be kept until then.

        Raises:
            QueueFullError: at once.
            UserError: the request can never be answered.
        """
        ...

    def submit(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Take a request; closing the iterator ends it.

        Raises:
            QueueFullError: at once.
            UserError: at once; the request can never be answered.
        """
        ...

    def between_steps(self, work: Callable[[Engine], T]) -> Awaitable[T]:
        """``work`` of the engine while no step runs; awaited, it gives its result or raises."""
        ...

    def drain(self, timeout: float) -> object:
        """Take no more requests, and wait until all have ended; those that run after ``timeout`` seconds are ended."""
        ...
