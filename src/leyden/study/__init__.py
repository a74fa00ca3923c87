"""Studies: experiments that decide something. On data: ``leyden study data``; on grids of runs: docs/studies.md.

Reading order: ``metric.py``, ``hypothesis.py``, ``power.py``, ``experiment.py``, ``plan.py``, ``verdict.py``,
``null.py``; of grids: ``grid.py``, ``launcher.py``, ``outcome.py``, ``kinds.py``, ``fits.py``. The statistics import no
torch.
"""

from leyden.study.hypothesis import (
    TestResult,
    bootstrap_interval,
    crossed_test,
    flip_items,
    items_test,
    permute_runs,
    runs_test,
)
from leyden.study.metric import log_acc_norm2
from leyden.study.power import (
    Noise,
    measure_noise,
    minimum_detectable_effect,
    paired_items_needed,
    paired_minimum_effect,
    power_of,
    seeds_needed,
)

__all__ = [
    "Noise",
    "TestResult",
    "bootstrap_interval",
    "crossed_test",
    "flip_items",
    "items_test",
    "log_acc_norm2",
    "measure_noise",
    "minimum_detectable_effect",
    "paired_items_needed",
    "paired_minimum_effect",
    "permute_runs",
    "power_of",
    "runs_test",
    "seeds_needed",
]
