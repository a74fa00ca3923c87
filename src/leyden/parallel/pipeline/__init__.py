"""Pipeline parallelism: the layers dealt to stages, and micro-batches that pass through them one behind the other.

Reading order: ``split.py``, ``stage.py``, ``schedule.py``.
"""

from leyden.parallel.pipeline.schedule import Pipeline
from leyden.parallel.pipeline.split import layer_costs, split_layers
from leyden.parallel.pipeline.stage import StageFeatures, StageModel, boundary

__all__ = ["Pipeline", "StageFeatures", "StageModel", "boundary", "layer_costs", "split_layers"]
