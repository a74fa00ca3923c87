"""Coordination of the ranks that write or read one directory: an error on one rank is raised on all of them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.parallel import Mesh

T = TypeVar("T")


class Coordinator:
    """The ranks of a run, with a process group of their own, so that a thread can save while training communicates.

    Args:
        group: on gloo, of all ranks; None: one process.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def on_all_ranks(self, do: Callable[[], T]) -> list[T]:
        """Call ``do()`` on every rank and return all results, by rank; all ranks call this at the same point.

        Raises:
            Exception: the first failing rank's own error on that rank, and on all others too if it is a UserError.
            RuntimeError: on the others, if it is any other; it names the rank.
        """
        result, error = None, None
        try:
            result = do()
        except Exception as caught:
            error = caught
        told = None if error is None else (isinstance(error, UserError), f"{type(error).__name__}: {error}")
        everyone: list[Any] = [(result, told)]
        if self.group is not None:
            everyone = [None] * self.size
            dist.all_gather_object(everyone, (result, told), group=self.group)
        for rank, (_, failure) in enumerate(everyone):
            if failure is not None:
                if rank == self.rank:
                    assert error is not None, "told of it"
                    raise error
                by_user, message = failure
                raise UserError(message.partition(": ")[2]) if by_user else RuntimeError(f"rank {rank}: {message}")
        return [result for result, _ in everyone]

    def on_rank_0(self, do: Callable[[], T]) -> T:
        """Call ``do()`` on rank 0 alone and return its result on every rank."""
        return self.on_all_ranks(lambda: do() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    @contextmanager
    def directory(self, path: Path) -> Iterator[Path]:
        """:func:`leyden.core.files.atomic_directory` for all ranks to fill; an error within must be one of all ranks.

        Raises:
            UserError: the disk is full (or a quota is).
        """
        with ExitStack() as stack:
            part = self.on_rank_0(lambda: stack.enter_context(atomic_directory(path)))
            yield part
            self.on_rank_0(stack.pop_all().close)


ALONE = Coordinator()


@functools.cache
def coordinator_of(mesh: Mesh | None) -> Coordinator:
    """The coordinator of all ranks of ``mesh``, made once; all ranks call this at the same point."""
    if mesh is None or mesh.groups["world"] is None:
        return ALONE
    timeout = timedelta(seconds=mesh.plan.settings.timeout_seconds)
    group = dist.new_group(timeout=timeout, backend="gloo", group_desc="checkpoint")
    assert isinstance(group, dist.ProcessGroup), "it has all ranks"
    return Coordinator(group)
