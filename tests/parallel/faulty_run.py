"""``leyden`` with a fault: ``faulty_run.py FAULT RANK STEP ARGUMENTS`` in place of ``-m leyden ARGUMENTS``.

The fault is in the midst of the step's last backward on that rank, the first time that torchrun starts the ranks.
"""

import os
import signal
import sys
import time

from leyden.cli import main
from leyden.parallel import RankGroup

FAULTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hang": lambda: time.sleep(600),
}

_at = RankGroup.at


def at_and_fail(rank_group: RankGroup, phase: str, step: int, micro_batch: int = 0) -> None:
    _at(rank_group, phase, step, micro_batch)
    if (phase, step, str(rank_group.rank)) == ("backward", int(STEP), RANK):
        FAULTS[FAULT]()


if __name__ == "__main__":
    FAULT, RANK, STEP = sys.argv[1:4]
    del sys.argv[1:4]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        RankGroup.at = at_and_fail
    main()
