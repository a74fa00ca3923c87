"""Background load: busy processes that compete for the processor while something is measured."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WORK = "while True: pass"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes of one thread each, which compute without a pause until the block ends."""
    started: list[subprocess.Popen] = []
    try:
        for _ in range(processes):
            started.append(subprocess.Popen([sys.executable, "-S", "-c", _WORK]))
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def beside_note(processes: int) -> list[str]:
    """What a table says of it; nothing where nothing ran beside."""
    many = "process" if processes == 1 else "processes"
    return [f"measured beside {processes} busy {many} of one thread each"] if processes else []
