"""Prefetching: batches are made ahead of their use by threads, with the same contents and state as without."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from leyden.data.loader.packing import Batch, PackedBatchIterator


class Prefetched:
    """A rank's share of every batch, a few batches ahead. Close it, or use it as a context manager.

    Args:
        batches: from which it goes on.
        rank, ranks: whose share.
        ahead: how many batches are made before they are asked for; each is held in memory.
        workers: threads; copying tokens releases Python's lock.
    """

    def __init__(
        self, batches: PackedBatchIterator, *, rank: int = 0, ranks: int = 1, ahead: int = 2, workers: int = 1
    ) -> None:
        self._batches = batches
        self._share = rank, ranks
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(workers, "prefetch")
        self._state = batches.state_dict()
        self._waiting: deque[Future[Batch]] = deque()

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        number = self._state["batch"]
        while len(self._waiting) <= self._ahead:
            self._waiting.append(self._pool.submit(self._batches.share, number + len(self._waiting), *self._share))
        batch = self._waiting[0].result()  # an error stays first, and is raised again
        self._waiting.popleft()
        self._state = {**self._state, "batch": number + 1}
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands: batches made ahead do not count."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As of :class:`leyden.data.loader.packing.PackedBatchIterator`; what was made ahead is forgotten."""
        self._batches.load_state_dict(state)
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._state = self._batches.state_dict()
