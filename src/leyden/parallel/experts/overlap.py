"""Overlapping the communication of one group of tokens with the computation of another, and a record of the order.

The exchange of a group is a generator: it starts a communication, yields, and waits for it when it is resumed. Resuming
the groups in turn, each one step behind the one before it, puts the computation of another group between the start of
every communication and its end. The order is the host's and the same on every rank, so that the collectives of a
process group match; what overlaps is what streams (NCCL) or threads (gloo) do meanwhile.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Exchange = Generator[None, None, None]
"""Yields between the start of each communication and its wait."""

_ENDED = object()


@dataclass(frozen=True)
class Event:
    """Something that a rank's host did for a group of tokens.

    Attributes:
        direction: ``forward`` or ``backward``.
        stage: ``dispatch``, ``gather``, ``experts``, ``scatter`` or ``combine``.
        group: which group of tokens.
        action: ``issued`` or ``done`` for communication, ``computed`` for experts.
    """

    direction: str
    stage: str
    group: int
    action: str

    def __str__(self) -> str:
        return f"{self.direction} {self.stage} {self.group} {self.action}"


_recorders: list[list[Event]] = []
"""Process-wide, since a backward on a GPU runs in a thread of autograd's own."""


@contextmanager
def record_events() -> Iterator[list[Event]]:
    """A list that fills with the events of this process inside the ``with``, in the order in which they happen."""
    events: list[Event] = []
    _recorders.append(events)
    try:
        yield events
    finally:
        _recorders.remove(events)


def record_event(direction: str, stage: str, group: int, action: str) -> None:
    """Append an event to every list of :func:`record_events` that is open."""
    for events in _recorders:
        events.append(Event(direction, stage, group, action))


def run_staggered(exchanges: Iterable[Exchange]) -> None:
    """Run the generators to their ends, each resumed one step behind the one before it.

    In every turn the youngest goes first: it issues what will be under way while an older one computes, and an older
    one still waits only after that for what was issued before the computation.
    """
    coming, running = iter(exchanges), list[Exchange]()
    while (started := next(coming, None)) is not None or running:
        running = running if started is None else [started, *running]
        running = [exchange for exchange in running if next(exchange, _ENDED) is not _ENDED]
