"""Training: one step (``step.py``), one loop (``loop.py``), and what they stand on.

Reading order: ``step.py``, ``loop.py``, ``objective.py``, ``state.py``, ``optimizer.py``, ``learning_rate.py``,
``batch_schedule.py``, ``run.py``.

Names resolve lazily (PEP 562): the optimizer and the objectives need torch and pydantic alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.parallel.objective import Objective as Objective
    from leyden.parallel.objective import Sums as Sums
    from leyden.parallel.objective import sums_of_row as sums_of_row
    from leyden.train.batch_schedule import BatchSchedule as BatchSchedule
    from leyden.train.learning_rate import LearningRate as LearningRate
    from leyden.train.loop import fit as fit
    from leyden.train.metrics import read_metrics as read_metrics
    from leyden.train.objective import Pretrain as Pretrain
    from leyden.train.objective import document_sums as document_sums
    from leyden.train.optimizer import AdamWConfig as AdamWConfig
    from leyden.train.optimizer import MasterAdamW as MasterAdamW
    from leyden.train.run import RunSettings as RunSettings
    from leyden.train.run import StageRun as StageRun
    from leyden.train.run import build_state as build_state
    from leyden.train.run import save_trained as save_trained
    from leyden.train.run import train_stages as train_stages
    from leyden.train.state import Batches as Batches
    from leyden.train.state import Progress as Progress
    from leyden.train.state import TrainState as TrainState
    from leyden.train.step import StepResult as StepResult
    from leyden.train.step import train_step as train_step
    from leyden.train.steps import Callback as Callback
    from leyden.train.steps import FitSettings as FitSettings

_HOMES = {
    "AdamWConfig": "leyden.train.optimizer",
    "BatchSchedule": "leyden.train.batch_schedule",
    "Batches": "leyden.train.state",
    "Callback": "leyden.train.steps",
    "FitSettings": "leyden.train.steps",
    "LearningRate": "leyden.train.learning_rate",
    "MasterAdamW": "leyden.train.optimizer",
    "Objective": "leyden.parallel.objective",
    "Pretrain": "leyden.train.objective",
    "Progress": "leyden.train.state",
    "RunSettings": "leyden.train.run",
    "StageRun": "leyden.train.run",
    "StepResult": "leyden.train.step",
    "Sums": "leyden.parallel.objective",
    "TrainState": "leyden.train.state",
    "build_state": "leyden.train.run",
    "document_sums": "leyden.train.objective",
    "fit": "leyden.train.loop",
    "read_metrics": "leyden.train.metrics",
    "save_trained": "leyden.train.run",
    "sums_of_row": "leyden.parallel.objective",
    "train_stages": "leyden.train.run",
    "train_step": "leyden.train.step",
}
__all__ = [
    "AdamWConfig",
    "BatchSchedule",
    "Batches",
    "Callback",
    "FitSettings",
    "LearningRate",
    "MasterAdamW",
    "Objective",
    "Pretrain",
    "Progress",
    "RunSettings",
    "StageRun",
    "StepResult",
    "Sums",
    "TrainState",
    "build_state",
    "document_sums",
    "fit",
    "read_metrics",
    "save_trained",
    "sums_of_row",
    "train_stages",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'leyden.train' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
