"""The running states of linear attention: what a layer remembers is a matrix [K, V] a head, however long the past."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from leyden.model.mixers.mixer import Memory
from leyden.model.rows import Rows, joined


class RunningState(Memory):
    """The running state of one layer: float32 [B, H, K, V], or None before the first token."""

    def __init__(self) -> None:
        self.state: torch.Tensor | None = None

    def take(self, state: torch.Tensor) -> None:
        """Take over the state behind the newest token."""
        self.state = state


@dataclass(frozen=True)
class PooledStates(Memory):
    """The states of one layer, and the rows that read and write them.

    Attributes:
        states: [S, H, K, V] float32.
        rows: of the forward pass.
    """

    states: torch.Tensor
    rows: Rows

    def scan(
        self,
        tokens: tuple[torch.Tensor, ...],
        decode: Callable[..., torch.Tensor],
        prefill: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """[1, T, H, V], each sequence from its own state.

        Args:
            tokens: what the recurrence reads of them, [1, T, H, *] each: q, k, v, and perhaps more.
            decode: from such tensors of one token of each of B sequences [B, H, *], the states and [B] slots.
            prefill: from such tensors of all tokens of N sequences, the states, [N] slots and cu_seqlens.
        """
        rows, parts = self.rows, []
        for start, stop, moves in zip(rows.rounds, rows.rounds[1:], rows.moves, strict=False):
            after = rows.states_after[start:stop]
            if moves:
                self.states[after] = self.states[rows.states_before[start:stop]]
            parts.append(decode(*(x[0, start:stop] for x in tokens), self.states, after)[None])
        n, stop = rows.num_decodes, len(rows.places)
        if n < stop:
            slots = rows.states_after[n:]
            parts.append(prefill(*(x[:, n:stop] for x in tokens), self.states, slots, rows.cu_seqlens))
        return joined(parts, tokens[2])
