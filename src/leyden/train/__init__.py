"""Training: one step (``step.py``), one loop (``loop.py``), and what they stand on.

Reading order: ``step.py``, ``loop.py``, ``objective.py``, ``state.py``, ``optimizer.py``, ``schedule.py``.
"""

from leyden.train.loop import Callback, FitSettings, fit
from leyden.train.metrics import read_metrics
from leyden.train.objective import LossSums, Objective, PackedBatch, Pretrain
from leyden.train.optimizer import AdamWConfig, MasterAdamW
from leyden.train.schedule import Schedule
from leyden.train.state import Batches, TrainState
from leyden.train.step import StepResult, train_step

__all__ = [
    "AdamWConfig",
    "Batches",
    "Callback",
    "FitSettings",
    "LossSums",
    "MasterAdamW",
    "Objective",
    "PackedBatch",
    "Pretrain",
    "Schedule",
    "StepResult",
    "TrainState",
    "fit",
    "read_metrics",
    "train_step",
]
