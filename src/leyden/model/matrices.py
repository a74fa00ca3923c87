"""Which weights are the matrices of hidden layers, and which matrices lie fused in one weight.

An optimizer that treats a weight as a linear map (:mod:`leyden.train.muon`) needs the map itself. The queries, keys and
values of a fused projection are three maps, the two projections of a SwiGLU two, and those of every expert are its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from leyden.model.config import ModelConfig
from leyden.model.lora import is_adapter

_FUSED = {
    "qkv_proj.weight": (None, 3),
    "gate_up_proj": (1, 2),
}
"""By the last part of a name: how many groups of rows there are (None: one a head), and of how many maps each has."""

_NO_MAPS = ("mlp.gate.weight", "coefficient.weight")
"""What has a row for each expert, or one row: a router, and the gate of a shared expert."""


@dataclass(frozen=True)
class Fused:
    """How the rows of a weight are divided over maps: groups one behind another, in each some rows of every map.

    Attributes:
        groups: how many; the rows of a map are those that it has in each, in order.
        maps: how many maps there are.
    """

    groups: int = 1
    maps: int = 1

    def split(self, weight: torch.Tensor) -> torch.Tensor:
        """[..., rows, columns], perhaps of several experts, to [matrices, rows of one, columns]."""
        grouped = weight.unflatten(-2, (self.groups, self.maps, -1))
        return grouped.transpose(-4, -3).flatten(-3, -2).flatten(0, -3)

    def join(self, matrices: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The inverse of :meth:`split`: the weight of ``shape``."""
        rows = matrices.shape[-2] // self.groups
        grouped = matrices.view(*shape[:-2], self.maps, self.groups, rows, shape[-1])
        return grouped.transpose(-4, -3).reshape(shape)


def hidden_matrices(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> dict[str, Fused]:
    """Those weights that map hidden states to hidden states, by name, and how each is divided.

    They are the matrices within layers and within modules for multi-token prediction. The embedding and the output
    projection map from and to tokens, and vectors, routers and the gate of a shared expert (one number a token) are
    no such maps.

    Args:
        shapes: of the whole weights, by name.
        config: of the model.
    """
    return {name: _fused(name, config) for name, shape in shapes.items() if _is_hidden(name, shape)}


def _is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    within = name.startswith(("layers.", "mtp."))
    return within and len(shape) > 1 and not name.endswith(_NO_MAPS) and not is_adapter(name)


def _fused(name: str, config: ModelConfig) -> Fused:
    groups, maps = next((how for end, how in _FUSED.items() if name.endswith(f".{end}")), (1, 1))
    return Fused(config.num_attention_heads if groups is None else groups, maps)
