"""Memory for the bodies of all requests together."""

from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """So many bytes, of which each request takes what its body needs and gives it back in the end.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """The share of one request, until the end of the ``with``."""
        share = Share(self)
        try:
            yield share
        finally:
            share.take(0)

    def move(self, num_bytes: int) -> bool:
        """Take further bytes, or give back where there are less than none; whether there were as many."""
        if num_bytes > 0 and self._taken + num_bytes > self._limit:
            return False
        self._taken += num_bytes
        return True


class Share:
    """What one request has taken."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def take(self, size: int) -> bool:
        """Have ``size`` bytes in all from now on; False, and nothing is changed, where there are not so many."""
        if not self._budget.move(size - self._size):
            return False
        self._size = size
        return True
