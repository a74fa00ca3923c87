"""The softmax attention layer: grouped queries, RoPE on the first dims of each head (arXiv 2501.08313, section 2)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from leyden.model.config import ModelConfig
from leyden.model.forward_context import ForwardContext, Wanted, take
from leyden.model.mixers.mixer import Memory, Mixer, MixerCount, PoolTensor
from leyden.model.norm import RMSNorm
from leyden.model.rows import GRAIN, Rows, joined
from leyden.ops import apply_rotary, paged_attention, paged_prompt_attention, softmax_attention

QUERY_BLOCK = 128
"""Softmax attention takes queries in blocks that begin at multiples of it, however many keys they see."""


class AppendedMemory(Memory):
    """Keys and values of one layer, of the sequences of a batch."""

    def append(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Those that are held, up to position ``length``, with new ones [B, T, Hkv, D] behind them.

        Returns:
            [B, S + T, Hkv, D] each, and what :meth:`Memory.take` is to get, or None.
        """
        raise NotImplementedError


class KeyValues(AppendedMemory):
    """Keys and values of one softmax layer, in buffers that double as they fill."""

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Write after the first ``length`` positions and return all keys and values up to the new end.

        Args:
            keys, values: [B, T, Hkv, D].
            length: how many positions are held already.

        Returns:
            Views [B, length + T, Hkv, D], and None: nothing is to be taken over.
        """
        end = length + keys.shape[1]
        self._keys = room_for(self._keys, keys, length, end)
        self._values = room_for(self._values, values, length, end)
        self._keys[:, length:end] = keys
        self._values[:, length:end] = values
        return self._keys[:, :end], self._values[:, :end], None


def room_for(buffer: torch.Tensor | None, new: torch.Tensor, length: int, end: int) -> torch.Tensor:
    """``buffer`` [B, S, H, D], or one with as much more room as ``new`` [B, T, H, D] needs.

    Args:
        buffer: its first ``length`` positions are held; None for none.
        new: what is to be written behind them.
        length: how many positions are held.
        end: how many positions there is to be room for. One head's positions are contiguous.
    """
    if buffer is not None and buffer.shape[1] >= end:
        return buffer
    B, _, H, D = new.shape
    capacity = max(64, 1 << (end - 1).bit_length())
    grown = new.new_empty(B, H, capacity, D).transpose(1, 2)
    if buffer is not None:
        grown[:, :length] = buffer[:, :length]
    return grown


@dataclass(frozen=True)
class Prompt:
    """The rows of one sequence that prefills.

    Attributes:
        number: among those that prefill.
        start, stop: its rows.
        first: the first of them whose attention is asked for; those before it count by their keys and values alone.
        length: how many tokens of the sequence are read then.
    """

    number: int
    start: int
    first: int
    stop: int
    length: int

    @property
    def padding(self) -> int:
        """Rows that are added behind it, so that products have the sizes that they always have."""
        return -self.length % GRAIN


class PooledPrompts(Memory):
    """What one layer remembers in pools, and the rows that read and write it."""

    rows: Rows

    def prompts(self, wanted_alone: bool) -> Iterator[Prompt]:
        """The sequences that prefill; with ``wanted_alone`` as of :meth:`PooledAttention.attend`."""
        rows = self.rows
        for number, (start, stop) in enumerate(rows.spans()):
            length = rows.ends[number]
            first = start
            if wanted_alone and rows.last_wanted is not None:
                wanted = rows.last_wanted[number]
                blocks = (length - wanted) // QUERY_BLOCK * QUERY_BLOCK
                first = stop if wanted == 0 else max(start, stop - (length - blocks))
            yield Prompt(number, start, first, stop, length)


class PooledAttention(PooledPrompts):
    """Keys and values of one layer in pools, and the rows that read and write them."""

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        wanted_alone: bool = False,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Write k and v [1, T, Hkv, D] into the pools; attention of q [1, T, Hq, D] to its own sequence's.

        With ``wanted_alone`` the rows of prompts that ``rows.wanted`` does not name are zeros. The others are computed
        from where a block of queries begins (:data:`QUERY_BLOCK`), so that they have the bits they always have.
        The ``softcap`` is that of :func:`leyden.ops.softmax_attention`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class PooledKeyValues(PooledAttention):
    """Keys and values of one softmax layer, and the rows that read and write them.

    Attributes:
        keys, values: [P, PAGE, Hkv, D].
        rows: of the forward pass.
    """

    keys: torch.Tensor
    values: torch.Tensor
    rows: Rows

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        wanted_alone: bool = False,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """See :meth:`PooledAttention.attend`."""
        rows, n, num_rows = self.rows, self.rows.num_decodes, len(self.rows.places)
        self.keys.flatten(0, 1)[rows.places] = k[0, :num_rows]
        self.values.flatten(0, 1)[rows.places] = v[0, :num_rows]
        parts = []
        if n:
            given = (q[0, :n], self.keys, self.values, rows.tables[:n], rows.lengths)
            parts.append(paged_attention(*given, softcap=softcap)[None])
        for prompt in self.prompts(wanted_alone):
            if prompt.start < prompt.first:
                parts.append(q.new_zeros(1, prompt.first - prompt.start, *q.shape[2:]))
            if prompt.first < prompt.stop:
                queries, table = q[0, prompt.first : prompt.stop], rows.tables[n + prompt.number]
                given = (queries, self.keys, self.values, table, prompt.length)
                parts.append(paged_prompt_attention(*given, softcap=softcap)[None])
        return joined(parts, q)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    context: ForwardContext,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """:func:`leyden.ops.softmax_attention` over the tokens of one process."""
    return softmax_attention(q, k, v, context.alone(), window=window, softcap=softcap)


class SoftmaxAttention(Mixer):
    """Causal attention with ``num_key_value_heads`` shared keys and values, scale ``head_dim^-1/2``.

    Other models of the family norm queries and keys head by head before they turn (``qk_norm``), and multiply what the
    heads give by ``sigmoid(output_gate(x))`` (``attn_output_gate``); Gemma 2 caps the scores
    (``attn_logit_softcapping``).
    """

    kind = "full_attention"
    title = "softmax"
    residual = "full_attn"
    tensor_dims = {  # noqa: RUF012 - of the class
        "q_proj.weight": 0,
        "k_proj.weight": 0,
        "v_proj.weight": 0,
        "o_proj.weight": 1,
        "output_gate.weight": 0,
    }
    seam = "attend"
    alone = staticmethod(attend)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, shared = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.output_gate = nn.Linear(config.hidden_size, width, bias=False) if config.attn_output_gate else None
        normed = self.kind in config.qk_norm
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if normed else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if normed else None
        self.attend = attend
        """Attention itself; where ranks share a row, one that exchanges keys and values."""
        self.window: int | None = None
        """How many keys a token sees at most; None: all before it."""
        self.softcap = config.attn_logit_softcapping

    @classmethod
    def create(cls, config: ModelConfig, layer: int) -> Self:
        return cls(config)

    @classmethod
    def divided(cls, config: ModelConfig) -> Mapping[str, int]:
        return {**super().divided(config), "key-value heads": config.num_key_value_heads}

    @classmethod
    def count(cls, config: ModelConfig) -> MixerCount:
        """A visible key costs 2 D products and sums a head: its score, and its share of the values."""
        D, width = config.hidden_size, config.num_attention_heads * config.head_dim
        shared, gate = config.num_key_value_heads * config.head_dim, width if config.attn_output_gate else 0
        return MixerCount(
            weights=D * (2 * width + 2 * shared + gate),
            idle_weights=D * (2 * width + gate),  # queries, gate and output
            norm_weights=2 * config.head_dim if cls.kind in config.qk_norm else 0,
            values_per_token=2 * shared,
            mixed_values=2 * width + 2 * shared + gate,
            flops_per_key=4 * width,
            flops_per_kept_key=4 * width,
        )

    @classmethod
    def memory(cls, config: ModelConfig) -> Memory:
        return KeyValues()

    @classmethod
    def page_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        one = PoolTensor((config.num_key_value_heads, config.head_dim), dtype)
        return {"keys": one, "values": one}

    @classmethod
    def pooled(cls, tensors: Mapping[str, torch.Tensor], rows: Rows) -> Memory:
        return PooledKeyValues(tensors["keys"], tensors["values"], rows)

    def forward(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, Any]:
        """Attend within x, and to the keys and values in ``memory``, to which those of x are appended.

        Args:
            x: [B, T, D].
            context: the positions and the packed documents, if any.
            memory: keys and values of the tokens before, or None.
            wanted: which rows are asked for; all of them where documents are packed.

        Returns:
            [B, wanted rows, D], and what :meth:`Memory.take` is to get; None where the memory changes in place.
        """
        pooled = isinstance(memory, PooledAttention)
        last = len(context.cos) if pooled or not isinstance(wanted, int) else wanted
        q, k, v = (
            proj(rows).unflatten(-1, (-1, self.head_dim))
            for proj, rows in ((self.q_proj, x[:, -last:]), (self.k_proj, x), (self.v_proj, x))
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = apply_rotary(q, context.cos[-last:], context.sin[-last:], scale=context.scale)
        k = apply_rotary(k, context.cos, context.sin, scale=context.scale)
        if pooled:
            attended = memory.attend(q, k, v, wanted_alone=wanted is not None, softcap=self.softcap)
            return self._output(take(attended, wanted), take(x, wanted)), None
        state = None
        if isinstance(memory, AppendedMemory):
            k, v, state = memory.append(k, v, context.start)
        return self._output(self.attend(q, k, v, context, self.window, self.softcap), x[:, -last:]), state

    def _output(self, attended: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What the heads give for ``rows`` [B, R, D] of the input, [B, R, H, K], to [B, R, D]."""
        heads = attended.flatten(2)
        if self.output_gate is not None:
            heads = heads * torch.sigmoid(self.output_gate(rows))
        return self.o_proj(heads)
