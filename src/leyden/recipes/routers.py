"""What a recipe may say of the biases by which routers choose."""

from collections.abc import Sequence
from typing import Protocol

from leyden.model import ModelConfig
from leyden.train import LearningRate

_KEYS = ("expert_bias_rate", "expert_bias_share")


class _Stage(Protocol):
    name: str
    expert_bias_rate: float
    expert_bias_share: float


def check_biases(model: ModelConfig, stages: Sequence[_Stage], *, frozen: bool) -> None:
    """Refuse stages that move biases which there are not, or which stay as they are.

    Args:
        model: the shape.
        stages: of the recipe.
        frozen: whether the weights of the model are not trained.

    Raises:
        ValueError: says what is asked for, and why nothing would come of it.
    """
    if model.router == "sigmoid_groups" and not frozen:
        return
    usual = LearningRate()
    for stage in stages:
        asked = [key for key in _KEYS if getattr(stage, key) not in (getattr(usual, key), 0)]
        if asked:
            why = "train.lora leaves the model as it is" if frozen else f"model.router is '{model.router}'"
            raise ValueError(
                f"stage '{stage.name}': {asked[0]} is of the biases by which routers choose, and {why}, so that none "
                "would move; leave it out"
            )
