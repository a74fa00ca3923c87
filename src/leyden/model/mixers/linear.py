"""What all kinds of linear attention owe alike: their memory is one state a sequence, whatever was read."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch

from leyden.model.config import ModelConfig
from leyden.model.mixers.mixer import Mixer, MixerCount, PoolTensor
from leyden.model.mixers.states import PooledStates, RunningState
from leyden.model.norm import GroupedRMSNorm, RMSNorm
from leyden.model.rows import Rows


def heads_norm(config: ModelConfig) -> RMSNorm:
    """The norm of what all heads of a layer give, in one group or in several."""
    width, groups = config.num_attention_heads * config.head_dim, config.lightning_norm_groups
    if groups == 1:
        return RMSNorm(width, config.lightning_norm_eps)
    return GroupedRMSNorm(width, config.lightning_norm_eps, groups)


class LinearAttention(Mixer):
    """A mixer that remembers a state [H, K, K] in float32, with ``qkv_proj``, ``norm`` and ``out_proj``.

    Attributes:
        state_name: of the states in a pool; every kind has its own, as a model may have layers of several.
        num_gates: how many projections from a token to the width of all heads there are beside q, k, v and the output.
        num_heads: of this rank.
    """

    residual = "linear_attn"
    head_norms = ("norm.weight",)
    seam = "scan"
    state_name: ClassVar[str]
    num_gates: ClassVar[int] = 0
    num_heads: int
    norm: RMSNorm

    @classmethod
    def create(cls, config: ModelConfig, layer: int) -> Self:
        return cls(config, layer)

    @classmethod
    def divided(cls, config: ModelConfig) -> Mapping[str, int]:
        groups = config.lightning_norm_groups
        return {**super().divided(config), **({"groups of the norm over heads": groups} if groups > 1 else {})}

    @classmethod
    def count(cls, config: ModelConfig) -> MixerCount:
        """The recurrence takes K V products and sums for ``k v^T``, and as many for ``S^T q``; decays count nothing."""
        D, width = config.hidden_size, config.num_attention_heads * config.head_dim
        state = width * config.head_dim
        return MixerCount(
            weights=(4 + cls.num_gates) * D * width,
            idle_weights=(1 + cls.num_gates) * D * width,  # output and gates
            norm_weights=width + (2 * config.head_dim if cls.kind in config.qk_norm else 0),
            state_bytes=4 * state,
            mixed_values=(4 + cls.num_gates) * width,
            flops_per_token=4 * state,
        )

    @classmethod
    def memory(cls, config: ModelConfig) -> RunningState:
        return RunningState()

    @classmethod
    def slot_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        width = config.head_dim
        return {cls.state_name: PoolTensor((config.num_attention_heads, width, width), torch.float32, zeroed=True)}

    @classmethod
    def pooled(cls, tensors: Mapping[str, torch.Tensor], rows: Rows) -> PooledStates:
        return PooledStates(tensors[cls.state_name], rows)

    def take_heads(self, ranks: int) -> None:
        self.num_heads //= ranks
        if isinstance(self.norm, GroupedRMSNorm):
            self.norm.groups //= ranks
