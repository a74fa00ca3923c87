"""The contract of a mixer: the half of a layer through which tokens see each other.

A file of this folder says everything that one kind of mixer owes to the rest of the house: its module, what it
remembers of the tokens before (alone, and for many sequences at once), what it counts, and how ranks divide it. The
table in ``table.py`` finds it by the name that a configuration uses (``layer_types``). What belongs to ``parallel``
stands there, in tables by the same names: the planner's terms, and what context ranks exchange. A table that has no
entry for a kind raises.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from leyden.model.config import ModelConfig
from leyden.model.forward_context import ForwardContext, Wanted
from leyden.model.rows import Rows


@dataclass(frozen=True)
class MixerCount:
    """What one layer of a kind holds, remembers and computes.

    Attributes:
        weights: of its matrices, all of which every token meets.
        idle_weights: those of them that a token does not meet in the last layer, when nobody asks for its result and
            only what is remembered of it counts.
        norm_weights: of its norms, which are float32.
        state_bytes: of float32 states that it keeps of one sequence of any length.
        window_values: numbers in the model's dtype that it keeps of one sequence at most, whatever its length.
        values_per_token: numbers in the model's dtype that it keeps of every token.
        mixed_values: numbers in the model's dtype, of each token, that stand between its projections and what mixes
            the tokens: queries, keys, values, gates and the result.
        flops_per_token: of its recurrence, if it has one.
        flops_per_key: for one token and one key that it sees.
        flops_per_kept_key: the same for a key as it is remembered, which one new token sees in decoding.
        window: how many keys a token sees at most; None: all before it.
    """

    weights: int
    idle_weights: int
    norm_weights: int = 0
    state_bytes: int = 0
    window_values: int = 0
    values_per_token: int = 0
    mixed_values: int = 0
    flops_per_token: int = 0
    flops_per_key: int = 0
    flops_per_kept_key: int = 0
    window: int | None = None


def mean_keys(length: int, window: int | None) -> float:
    """How many keys a token sees, on average over a sequence of ``length`` tokens; at most ``window`` of them."""
    if window is None or window >= length:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


@dataclass(frozen=True)
class PoolTensor:
    """One tensor in which a layer remembers many sequences (:class:`leyden.model.Pools`).

    Attributes:
        shape: of one slot, or of one page behind its :data:`leyden.model.PAGE` tokens.
        dtype: of its numbers.
        spare: of slots, whether there is one more, behind all others, for rows that are nobody's (slot -1).
        zeroed: of slots, whether a sequence begins with zeros; else nothing is read there before it is written.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    spare: bool = False
    zeroed: bool = False

    @property
    def nbytes(self) -> int:
        """Of one slot, or of one token in a page."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Memory:
    """What one layer remembers of the tokens that it has read; of one batch, or in the pools of many sequences."""

    def take(self, state: Any) -> None:
        """Take over the new state that :meth:`Mixer.forward` gave, once the whole model has run.

        Only a mixer that gives new states needs a memory that takes them.
        """
        raise RuntimeError(f"{type(self).__name__} changes in place and takes over no state.")


class Mixer(nn.Module):
    """One kind of mixer. A subclass gives what follows; what has a value here it may leave.

    Attributes:
        kind: its name in ``layer_types``.
        title: what the kind is called in texts for users, as ``"lightning"``.
        residual: of the configuration's residual factors, the first part of the names: ``"linear_attn"``.
        tensor_dims: of each weight and buffer, by its name within the module, the dim that tensor ranks divide. They
            divide heads, so a dim is made of the heads, one behind the other.
        head_norms: those of these names that are the weights of norms over all heads, float32 and not sharded further;
            the norm is a submodule, whose mean square tensor ranks form together.
        whole: those of its weights, by their names, that tensor ranks have whole, because what they make serves all
            heads; each rank's gradient is that of its own heads, and ranks add them up.
        whole_norms: those of them that are the weights of norms, float32 and not sharded further.
        not_by_row: its projections that do not meet each row of a pass by itself: no adapter can be chosen by row.
        seam: the attribute with the function that context ranks replace by one that exchanges what they miss.
        alone: that function where one process has all tokens.
        scored: the same with the bits that ``alone`` has where no gradient is asked for, and a gradient
            (:func:`leyden.model.text_logprobs`); None where ``alone`` has the same bits in either case.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    residual: ClassVar[str]
    tensor_dims: ClassVar[Mapping[str, int]]
    head_norms: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[tuple[str, ...]] = ()
    whole_norms: ClassVar[tuple[str, ...]] = ()
    not_by_row: ClassVar[tuple[str, ...]] = ()
    seam: ClassVar[str]
    alone: ClassVar[Callable[..., Any]]
    scored: ClassVar[Callable[..., Any] | None] = None

    @classmethod
    def create(cls, config: ModelConfig, layer: int) -> Self:
        """The module of ``layer``."""
        raise NotImplementedError

    @classmethod
    def divided(cls, config: ModelConfig) -> Mapping[str, int]:
        """What the number of tensor ranks has to divide, by its name in an error message."""
        return {"attention heads": config.num_attention_heads}

    @classmethod
    def count(cls, config: ModelConfig) -> MixerCount:
        """By arithmetic alone."""
        raise NotImplementedError

    @classmethod
    def memory(cls, config: ModelConfig) -> Memory:
        """What a layer remembers of the sequences of a :class:`leyden.model.Cache`; empty."""
        raise NotImplementedError

    @classmethod
    def slot_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        """What a layer keeps of one sequence of any length, by names that no other kind uses."""
        return {}

    @classmethod
    def page_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        """What a layer keeps of each token, by names that no other kind uses."""
        return {}

    @classmethod
    def pooled(cls, tensors: Mapping[str, torch.Tensor], rows: Rows) -> Memory:
        """What a layer remembers in pools, for one forward pass.

        Args:
            tensors: of the names above, [slots, ...] and [pages, PAGE, ...].
            rows: whose tokens the pass reads.
        """
        raise NotImplementedError

    @classmethod
    def derived_buffers(cls, config: ModelConfig, layer: int) -> Mapping[str, torch.Tensor]:
        """The values of the module's buffers, which follow from the shape and are not saved, by name."""
        return {}

    def take_heads(self, ranks: int) -> None:
        """From now on this is one of ``ranks`` equal parts, whose weights are cut already."""

    def forward(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, Any]:
        """Let every token see those before it.

        Args:
            x: [B, T, D].
            context: where the tokens stand, and the packed documents, if any.
            memory: what was read before; None at the beginning.
            wanted: which rows are asked for.

        Returns:
            [B, wanted rows, D], and the new state, which :meth:`Memory.take` gets once the whole model has run; None
            for that where there is none, or where the memory has changed in place.
        """
        raise NotImplementedError
