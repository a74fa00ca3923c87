"""Requests and cancellations that arrive between two steps of an engine."""

import threading
from collections import deque
from typing import Any, Literal

from leyden.serve.job import Generation

Order = Literal["step", "next step", "arrivals", "read ahead", "update", "release", "acquire", "stop"]
"""What an engine does. Ranks that follow another one are told of it (:mod:`leyden.serve.ranks`)."""


class Arrivals:
    """Requests and aborts that wait until the engine takes them in. Any thread may add to them.

    A request is here as the first of its completions, which has the others with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generations: deque[Generation] = deque()
        self._aborts: deque[str] = deque()

    def __len__(self) -> int:
        """How many requests wait here."""
        return len(self._generations)

    @property
    def pending(self) -> bool:
        """Whether anything waits to be taken in."""
        return bool(self._generations or self._aborts)

    def add(self, first: Generation) -> None:
        """Let a request wait."""
        with self._lock:
            self._generations.append(first)

    def abort(self, id: str) -> None:
        """Let the request with this id end when the engine next takes something in."""
        with self._lock:
            self._aborts.append(id)

    def take(self, order: Literal["step", "next step", "arrivals"]) -> tuple[list[Generation], list[str]]:
        """All that came since the last time: requests, and the ids of those that are to end.

        Args:
            order: whether a step follows, or nothing does; ``"next step"`` where weights were not written to since the
                last one.
        """
        with self._lock:
            taken = list(self._generations), list(self._aborts)
            self._generations.clear()
            self._aborts.clear()
        return taken

    def clear(self) -> None:
        """Forget what came: it has been ended otherwise."""
        with self._lock:
            self._generations.clear()
            self._aborts.clear()

    def tell(self, order: Order, *values: Any) -> None:
        """Note that the engine does something else between two steps; here nobody needs to know."""
