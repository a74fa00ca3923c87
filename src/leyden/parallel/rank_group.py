"""The ranks of a run as its loop sees them: sums over all of them, decisions they take together, who writes."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - documented, not in __all__

from leyden.core.errors import Interrupted, UserError
from leyden.parallel.mesh import Mesh

_LONGEST_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class RankPosition:
    """Where a rank is in its run.

    Attributes:
        count: how many places the rank was at before; ranks that are at the same one have the same count.
        step: the step of the run, from 1.
        micro_batch: of the step, from 0.
        phase: what is being done.
    """

    count: int = 0
    step: int = 0
    micro_batch: int = 0
    phase: str = "start"

    def __str__(self) -> str:
        return f"step {self.step}, micro-batch {self.micro_batch}, {self.phase}"


class RankGroup:
    """All ranks of a run; without a mesh, one process.

    Args:
        mesh: of the ranks.

    Attributes:
        place: where this rank is, for the others to see (:mod:`leyden.parallel.watchdog`).
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.mesh = mesh
        self.place = RankPosition()
        self._world = None if mesh is None else mesh.groups["world"]
        self._num_told = 0

    def at(self, phase: str, step: int, micro_batch: int = 0) -> None:
        """Note where this rank is."""
        self.place = RankPosition(self.place.count + 1, step, micro_batch, phase)

    @property
    def alone(self) -> bool:
        """Whether there is one rank."""
        return self._world is None

    @property
    def pipelined(self) -> bool:
        """Whether the model is a :class:`leyden.parallel.pipeline.Pipeline`."""
        return self.mesh is not None and self.mesh.plan.pp > 1

    @property
    def rank(self) -> int:
        """This one's number; 0 writes what a run writes once."""
        return 0 if self.mesh is None else self.mesh.rank

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many shares of every batch is this rank's; ranks of the same documents have the same."""
        return (0, 1) if self.mesh is None else (self.mesh.dp_rank, self.mesh.plan.dp)

    @property
    def counts_rows(self) -> bool:
        """Whether this rank, of those that compute the same rows together, is the one that counts them."""
        return self.mesh is None or not any(self.mesh.at[axis] for axis in ("pp", "cp", "tp"))

    def sum(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The sums of tensors over all ranks, in float64 where there are several; one exchange."""
        if self._world is None:
            return list(tensors)
        assert self.mesh is not None, "a group has a mesh"
        flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).to(self.mesh.device)
        dist.all_reduce(flat, group=self._world)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all of them."""
        if self._world is None:
            return flag
        assert self.mesh is not None, "a group has a mesh"
        votes = torch.tensor(int(flag), device=self.mesh.device)
        dist.all_reduce(votes, group=self._world)
        return bool(votes)

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return 1 if self._world is None else self._world.size()

    def gather(self, value: Any) -> list[Any]:
        """What every rank says, by rank: values of these processes' own, which travel pickled; one exchange."""
        if self._world is None:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._world)
        return found

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)

    def first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns on rank 0, a JSON value, on every rank; the others wait for it, however long it takes.

        All ranks call this at the same place. No collective waits, so no timeout of theirs ends a long preparation.

        Raises:
            UserError, Interrupted, KeyboardInterrupt: on every rank, if ``work`` raised it.
            RuntimeError: on the others, if it raised anything else.
        """
        if self.mesh is None or self.mesh.store is None:
            assert self.alone, "ranks that wait for one another have a store"
            return work()
        self._num_told += 1
        key, store = f"told/{self._num_told}", self.mesh.store
        if self.rank > 0:
            # At another place each time: who waits here does not hang, and the first rank says where it is.
            return _outcome(_awaited(store, key, lambda: self.at("waiting for the first rank", self.place.step)))
        try:
            value = work()
        except BaseException as error:
            store.set(key, json.dumps({"error": type(error).__name__, "text": str(error)}))
            raise
        store.set(key, json.dumps({"value": value}))
        return value


def _awaited(store: Store, key: str, waiting: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The value of ``key`` once it is there; asked for now and then, so that Ctrl-C is heard meanwhile.

    ``waiting`` is called before each time but the first.
    """
    seconds = 0.01
    while not store.check([key]):
        time.sleep(seconds)
        waiting()
        seconds = min(2 * seconds, _LONGEST_POLL_SECONDS)
    return json.loads(store.get(key))


def _outcome(told: dict[str, Any]) -> Any:
    if "value" in told:
        return told["value"]
    known = {kind.__name__: kind for kind in (UserError, Interrupted, KeyboardInterrupt)}
    raise known.get(told["error"], RuntimeError)(told["text"])
