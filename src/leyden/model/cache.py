"""What a model remembers of the tokens it has read: a state for lightning layers, keys and values for softmax ones."""

import copy
from typing import Self

import torch

from leyden.model.config import ModelConfig


class LightningState:
    """The running state of one lightning layer: float32 [B, H, K, V], or None before the first token."""

    def __init__(self) -> None:
        self.state: torch.Tensor | None = None


class KeyValues:
    """Keys and values of one softmax layer, in buffers that double as they fill."""

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write after the first ``length`` positions and return all keys and values up to the new end.

        Args:
            keys, values: [B, T, Hkv, D].
            length: how many positions are held already.

        Returns:
            Views [B, length + T, Hkv, D].
        """
        end = length + keys.shape[1]
        self._keys = _room(self._keys, keys, length, end)
        self._values = _room(self._values, values, length, end)
        self._keys[:, length:end] = keys
        self._values[:, length:end] = values
        return self._keys[:, :end], self._values[:, :end]

    def reserve(self, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make room for ``end`` positions, all but the last of which are held.

        Returns:
            The buffers [B, capacity, Hkv, D], each head's positions contiguous, undefined beyond those held.
        """
        assert self._keys is not None and self._values is not None, "the first token goes through the model"
        self._keys = _room(self._keys, self._keys[:, :1], end - 1, end)
        self._values = _room(self._values, self._values[:, :1], end - 1, end)
        return self._keys, self._values


def _room(buffer: torch.Tensor | None, new: torch.Tensor, length: int, end: int) -> torch.Tensor:
    """``buffer`` with at least ``end`` positions, laid out so that one head's positions are contiguous."""
    if buffer is not None and buffer.shape[1] >= end:
        return buffer
    B, _, H, D = new.shape
    capacity = max(64, 1 << (end - 1).bit_length())
    grown = new.new_empty(B, H, capacity, D).transpose(1, 2)
    if buffer is not None:
        grown[:, :length] = buffer[:, :length]
    return grown


class Cache:
    """The memory of B sequences of equal length; it grows as needed.

    A forward pass that raises leaves the cache as it was: new lightning states are taken over, and ``length`` moves,
    only once the whole model has run.

    Attributes:
        length: how many tokens of each sequence have been read.
        layers: one :class:`LightningState` or :class:`KeyValues` a layer.
    """

    def __init__(self, config: ModelConfig, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self.length = 0
        self.layers: list[LightningState | KeyValues] = [
            LightningState() if kind == "linear_attention" else KeyValues() for kind in config.layer_types
        ]

    def advance(self, num_tokens: int, states: dict[int, torch.Tensor]) -> None:
        """Take over the new lightning states (by layer) after ``num_tokens`` more tokens."""
        for index, state in states.items():
            layer = self.layers[index]
            assert isinstance(layer, LightningState), "only lightning layers have a state"
            layer.state = state
        self.length += num_tokens

    def clone(self) -> Self:
        """A copy that shares nothing: to continue one text in two ways, or to come back to where it stood."""
        return copy.deepcopy(self)
