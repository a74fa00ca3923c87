"""Ends a rank when the launcher that started it has ended.

torchrun ends its ranks when it is told to stop, but killed outright it leaves them to themselves: they would train on,
and meet those of the next start in one folder.
"""

import functools
import os
import threading
import time
from collections.abc import Callable

from leyden.core.launch import PARENT, launched

EXIT_CODE = 75
"""Of a rank that ends because another process is gone: EX_TEMPFAIL, "try again"."""

_PAUSE_SECONDS = 0.5


@functools.cache
def end_with_launcher() -> None:
    """From here on a rank of torchrun ends within a second once that is gone; what it had saved is whole.

    Ranks that something else started, a script that has ended since perhaps, are left alone.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    threading.Thread(target=watch_launcher, args=(os._exit,), name="launcher", daemon=True).start()


def watch_launcher(end: Callable[[int], None]) -> None:
    """Wait until the parent of this process is gone, then say so and call ``end`` with the exit code."""
    while os.getppid() == PARENT:
        time.sleep(_PAUSE_SECONDS)
    said = f"rank {launched().rank} ends: process {PARENT}, which started it, is gone\n"
    os.write(2, said.encode())  # past every lock that the main thread may hold
    end(EXIT_CODE)
