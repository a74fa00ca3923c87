"""What a model remembers of the tokens it has read: in every layer, what the layer's mixer asks for."""

import copy
from typing import Any, Self

from leyden.model.config import ModelConfig
from leyden.model.mixers import Memory, mixer_of


class Cache:
    """The memory of B sequences of equal length; it grows as needed.

    A forward pass that raises leaves the cache as it was: new states are taken over, and ``length`` moves, only once
    the whole model has run.

    Attributes:
        length: how many tokens of each sequence have been read.
        layers: of each layer, its mixer's memory.
    """

    def __init__(self, config: ModelConfig, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self.length = 0
        self.layers: list[Memory] = [mixer_of(kind).memory(config) for kind in config.layer_types]

    def advance(self, num_tokens: int, states: dict[int, Any]) -> None:
        """Take over the new states (by layer) after ``num_tokens`` more tokens."""
        for index, state in states.items():
            self.layers[index].take(state)
        self.length += num_tokens

    def clone(self) -> Self:
        """A copy that shares nothing: to continue one text in two ways, or to come back to where it stood."""
        return copy.deepcopy(self)
