"""What a launcher (torchrun) told this process of the others: the one place that reads its environment."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

PARENT = os.getppid()
"""The process that started this one, torchrun for a rank of it; read as early as can be, while that surely lives."""


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    Attributes:
        rank: its number; 0 speaks for all.
        world: how many there are; 1: it was started by itself.
        local_rank: its number on this machine.
        local_world: how many there are on this machine.
        restart: how often the launcher has started them anew.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restart: int = 0

    def command(self, *arguments: str | Path) -> str:
        """The line that starts ``leyden ARGUMENTS`` on as many processes, quoted as a shell wants it."""
        words = [str(argument) for argument in arguments]
        if self.world == 1:
            return shlex.join(["leyden", *words])
        nodes = ["--nnodes", str(self.world // self.local_world)] if self.world > self.local_world else []
        return shlex.join(["torchrun", *nodes, "--nproc-per-node", str(self.local_world), "-m", "leyden", *words])


def launched() -> Launch:
    """As torchrun set the environment; one process where it did not."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Launch()
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in names)
    return Launch(rank, world, local_rank, local_world, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
