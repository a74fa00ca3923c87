"""The wait policy of OpenMP threads (spin or sleep); it needs the standard library alone.

The OpenMP runtime that PyTorch brings lets them spin, which is what makes small regions cheap on idle cores. Where
other programs hold the cores, each region then waits for a thread that is not running, and who spins keeps it from
running. The runtime reads its environment once, when PyTorch is imported, so this is decided before.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_RANK = "RANK"
"""Of torchrun, whose ranks start together and would each take the others for strangers."""
_BUSY_CORES = 0.5
_SAMPLES, _SAMPLE_SECONDS = 3, 0.15
_STAT = Path("/proc/stat")


def settle_waiting() -> float | None:
    """Let threads sleep while they wait, if other programs hold cores now and nobody has said how threads should wait.

    Call it before PyTorch is imported; later it does nothing.

    Returns:
        How many cores the others hold, where that decided; None where threads wait as the runtime has it.
    """
    if "torch" in sys.modules:
        return None
    settings = waiting_settings()
    os.environ.update(settings)
    return cores_of_others() if settings else None


def waiting_settings() -> Mapping[str, str]:
    """What to put into the environment of a process that computes; nothing on a machine with idle cores."""
    if any(name in os.environ for name in (*_VARIABLES, _RANK)):
        return {}
    # Who ends meanwhile, as the program that started this one may, does not count: all samples must say the same.
    if all(cores_of_others() >= _BUSY_CORES for _ in range(_SAMPLES)):
        return {"OMP_WAIT_POLICY": "PASSIVE"}
    return {}


def cores_of_others() -> float:
    """How many cores other programs keep busy, over some tenths of a second; 0 where the system does not say."""
    before = _busy_seconds()
    started, own = time.monotonic(), time.process_time()
    time.sleep(_SAMPLE_SECONDS)
    after = _busy_seconds()
    elapsed, own = time.monotonic() - started, time.process_time() - own
    return 0.0 if before is None or after is None else max(0.0, (after - before - own) / elapsed)


def _busy_seconds() -> float | None:
    """Of all cores since the system started, in whatever it was not idle or waiting for a disk."""
    try:
        words = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        spent = [int(word) for word in words[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
    except (OSError, ValueError):
        return None
    return (sum(spent) - sum(spent[3:5])) / os.sysconf("SC_CLK_TCK")
