"""Environment variables of a launcher (torchrun): the one place that reads them."""

import contextlib
import json
import os
import shlex
import time
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


_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun looks for what a process ended with."""
_PATIENCE_SECONDS = 30.0
"""A process takes seconds to end on a busy machine."""


def tell_launcher(text: str, *, alone: bool) -> None:
    """Hand ``text``, with which this process ends, to torchrun, which prints it behind its own traceback.

    What a process prints itself scrolls away under that traceback. Where nothing was started by torchrun, this does
    nothing.

    Args:
        text: the reason.
        alone: whether this process alone has the reason. Of one that all have, each machine prints one copy: all but
            its first process wait to be ended by torchrun, as it does once one process is gone.
    """
    path = os.environ.get(_ERROR_FILE)
    if path is None:
        return
    if not alone and launched().local_rank > 0:
        time.sleep(_PATIENCE_SECONDS)
    # "py_callstack" is what torchrun prints; it indents every line.
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")


def launched() -> Launch:
    """As torchrun set the environment; one process where it did not."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Launch()
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in names)
    return Launch(rank, world, local_rank, local_world, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
