"""The protocol of a model as training needs it.

A run of one process trains a :class:`leyden.model.HybridLM`. Where ranks divide the layers, each trains the stages that
it has (:class:`leyden.parallel.pipeline.Pipeline`), and all micro-batches of a step go through them together.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from leyden.model import ModelConfig, Rope
from leyden.parallel.objective import Objective, Row, Sums


class TrainableModel(Protocol):
    """A model, or a rank's part of one."""

    @property
    def config(self) -> ModelConfig:
        """Of the whole model, as it computes now."""
        ...

    def set_rope(self, rope: Rope, /) -> None:
        """Turn positions by this base and scaling from here on; ``config`` then says it."""
        ...

    def train(self, mode: bool = True, /) -> Any:
        """Compute as in training from here on."""
        ...

    def eval(self) -> Any:
        """Compute as in evaluation from here on."""
        ...


class PipelinedModel(TrainableModel, Protocol):
    """The stages that a rank has of a model whose layers are divided over pipeline ranks."""

    def run(self, batches: Sequence[Row], objective: Objective, /) -> list[Sums]:
        """Forward and backward of a step's micro-batches; the sums of each, by the objective."""
        ...

    def evaluate(self, batches: Sequence[Row], objective: Objective, /) -> list[Sums]:
        """As :meth:`run`, without the backward."""
        ...
