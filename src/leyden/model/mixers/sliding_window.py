"""Softmax attention within a sliding window: a token sees its own key and the ``sliding_window - 1`` before it.

What lies behind the window is given up: a sequence keeps its newest ``sliding_window`` keys and values, however long it
is, and the next token takes the place of the one that leaves the window. In pools they lie in the sequence's slot,
beside the states of lightning attention, so that snapshots, swapping and drafts treat them as they treat those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch

from leyden.model.config import ModelConfig
from leyden.model.mixers.mixer import Memory, MixerCount, PoolTensor
from leyden.model.mixers.softmax import QUERY_BLOCK, AppendedMemory, PooledAttention, Prompt, SoftmaxAttention
from leyden.model.rows import Rows, joined, pad_rows
from leyden.ops import paged_attention, softmax_attention

_Window = tuple[torch.Tensor, torch.Tensor]


class WindowKeyValues(AppendedMemory):
    """The newest keys and values of one layer, at most ``window`` of them: [B, tokens, Hkv, D] each."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._held: _Window | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, _Window]:
        """Those that are held and new ones [B, T, Hkv, D], and what is to be held from then on; nothing changes yet."""
        if self._held is not None:
            keys, values = (torch.cat([held, new], dim=1) for held, new in zip(self._held, (keys, values), strict=True))
        window = self._window
        return keys, values, (keys[:, -window:].clone(), values[:, -window:].clone())

    def take(self, state: _Window) -> None:
        """Take over the newest keys and values."""
        self._held = state


@dataclass(frozen=True)
class PooledWindow(PooledAttention):
    """The newest keys and values of one layer, and the rows that read and write them.

    A slot is a ring: the token at position p lies at place ``p % W``.

    Attributes:
        keys, values: [S + 1, W, Hkv, D]; the last slot takes what nobody's rows write.
        rows: of the forward pass.
    """

    keys: torch.Tensor
    values: torch.Tensor
    rows: Rows

    @property
    def _window(self) -> int:
        return self.keys.shape[1]

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
        rounds = zip(self.rows.rounds, self.rows.rounds[1:], self.rows.moves, strict=False)
        parts = [self._of_round(q[0], k[0], v[0], slice(start, stop), moves, softcap) for start, stop, moves in rounds]
        for prompt in self.prompts(wanted_alone):
            new = slice(prompt.start, prompt.stop)
            if prompt.start < prompt.first:
                parts.append(q.new_zeros(1, prompt.first - prompt.start, *q.shape[2:]))
            if prompt.first < prompt.stop:
                queries = q[0, prompt.first : prompt.stop]
                parts.append(self._of_prompt(queries, k[0, new], v[0, new], prompt, softcap))
            self._keep(k[0, new], v[0, new], prompt)
        return joined(parts, q)

    def _of_round(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: slice,
        moves: bool,
        softcap: float | None,
    ) -> torch.Tensor:
        """[1, R, Hq, D] of one token each of R sequences, which are the ``rows`` of q, k and v [T, H, D]."""
        slots = self.rows.states_after[rows].remainder(len(self.keys))  # nobody's, -1, is the last one
        places = self.rows.positions[rows] % self._window
        for memory, new in ((self.keys, k), (self.values, v)):
            if moves:
                memory[slots] = memory[self.rows.states_before[rows]]
            memory[slots, places] = new[rows]
        lengths = self.rows.lengths[rows].clamp(max=self._window)
        tables = slots.to(torch.int32)[:, None]
        return paged_attention(q[rows], self.keys, self.values, tables, lengths, softcap=softcap)[None]

    def _of_prompt(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prompt: Prompt, softcap: float | None
    ) -> torch.Tensor:
        """[1, T, Hq, D] of queries [T, Hq, D], the last of the prompt's positions; k and v are of all its rows.

        Keys begin where a block of keys does, so that a block has the same form whatever was read in one go; of those
        before the window there are none any more, and zeros stand for them.
        """
        read = prompt.length - len(k)
        begin = max(0, read - self._window + 1) // QUERY_BLOCK * QUERY_BLOCK
        held = range(max(begin, read - self._window), read)
        queries = pad_rows(q, len(q) + prompt.padding)
        keys, values = (
            torch.cat(
                [
                    new.new_zeros(held.start - begin, *new.shape[1:]),
                    memory.flatten(0, 1)[self._places(prompt, held)],
                    pad_rows(new, len(new) + prompt.padding),
                ]
            )
            for memory, new in ((self.keys, k), (self.values, v))
        )
        given = (queries[None], keys[None], values[None])
        return softmax_attention(*given, window=self._window, softcap=softcap)[:, : len(q)]

    def _keep(self, k: torch.Tensor, v: torch.Tensor, prompt: Prompt) -> None:
        """Write the newest of the prompt's keys and values into its slot."""
        newest = range(prompt.length - min(len(k), self._window), prompt.length)
        places = self._places(prompt, newest)
        self.keys.flatten(0, 1)[places] = k[len(k) - len(newest) :]
        self.values.flatten(0, 1)[places] = v[len(v) - len(newest) :]

    def _places(self, prompt: Prompt, positions: range) -> torch.Tensor:
        """Where the tokens at ``positions`` of the prompt's sequence lie, as ``slot * W + place``."""
        slot = self.rows.states_after[self.rows.num_decodes + prompt.number]
        there = torch.arange(positions.start, positions.stop, device=slot.device) % self._window
        return slot * self._window + there


class SlidingWindowAttention(SoftmaxAttention):
    """:class:`SoftmaxAttention` whose tokens see at most ``sliding_window`` keys, their own the last of them."""

    kind = "sliding_attention"
    title = "sliding-window"

    @classmethod
    def create(cls, config: ModelConfig, layer: int) -> Self:
        made = cls(config)
        made.window = _window(config)
        return made

    @classmethod
    def count(cls, config: ModelConfig) -> MixerCount:
        """Its keys and values do not grow with a sequence once the window is full."""
        whole, window = super().count(config), _window(config)
        return replace(whole, values_per_token=0, window_values=window * whole.values_per_token, window=window)

    @classmethod
    def memory(cls, config: ModelConfig) -> Memory:
        return WindowKeyValues(_window(config))

    @classmethod
    def slot_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        one = PoolTensor((_window(config), config.num_key_value_heads, config.head_dim), dtype, spare=True)
        return {"window_keys": one, "window_values": one}

    @classmethod
    def page_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        return {}

    @classmethod
    def pooled(cls, tensors: Mapping[str, torch.Tensor], rows: Rows) -> Memory:
        return PooledWindow(tensors["window_keys"], tensors["window_values"], rows)


def _window(config: ModelConfig) -> int:
    assert config.sliding_window is not None, "ModelConfig asks for it where a layer has a window"
    return config.sliding_window
