"""Memory for many sequences at once, as a server keeps it: states in slots, keys and values in pages.

A sequence has one slot and as many pages as its tokens fill. Which slot and which pages is for the caller to say, in
:class:`Rows`; a slot or page that no row names is neither read nor written.
"""

from dataclasses import dataclass
from typing import Self

import torch

from leyden.model.config import ModelConfig
from leyden.ops import (
    lightning_attention_decode,
    lightning_attention_prefill,
    paged_attention,
    softmax_attention,
)

PAGE = 256
"""Tokens of a page. Also the grid on which a text is read in parts with the same bits as whole: the longest block of
lightning attention, and a multiple of the blocks of softmax attention."""


_BLOCK = 128
"""Softmax attention takes queries in blocks that begin at multiples of it, however many keys they see."""

GRAIN = 16
"""Matrix libraries take other ways, with other roundings, for few rows: all products have a multiple of so many."""


@dataclass(frozen=True)
class Rows:
    """Whose tokens the rows of one forward pass are. Sequences that decode come first, then those that prefill.

    A row that decodes is one token; several rows may follow each other in one sequence (a draft to be verified). They
    are ordered in rounds: the first tokens of all sequences, the second ones of those that have two, and so on, and
    each names the slot of the state before it and the slot that takes the state behind it.

    What a layer decides by is here as numbers of the host: nothing is read back from the device. Rows that decode may
    be nobody's: at position 0, of length 0, in slot -1, and in places that :attr:`Pools.nowhere` begins.

    Attributes:
        positions: int64, of each token in its sequence; 0 of further ones, which are nobody's.
        places: [T] int64: where each token's keys and values lie, as ``page * PAGE + offset``.
        num_decodes: how many rows decode.
        rounds: the bounds of the rounds among them, from 0 to ``num_decodes``.
        moves: of each round, whether any state behind is to lie in another slot than the state before.
        lengths: [num_decodes] int32, how many keys each of these rows sees.
        bounds: of the sequences that prefill, from 0, counted from the first row that prefills.
        ends: of each sequence that prefills, how many of its tokens are read then.
        cu_seqlens: int32, ``bounds`` on the device.
        states_before, states_after: slots: one for each row that decodes, then one for each sequence that prefills,
            for which both are the same.
        tables: [rows that decode + sequences that prefill, max_pages] int32, the pages of each one's sequence, in
            order; entries behind its last page are not looked at.
        wanted: [R] int64, the rows whose hidden states are asked for. None: all.
        last_wanted: of each sequence that prefills, how many of its last rows are among them; the last layer then
            computes no others. None: it computes all.
    """

    positions: torch.Tensor
    places: torch.Tensor
    num_decodes: int
    rounds: tuple[int, ...]
    moves: tuple[bool, ...]
    lengths: torch.Tensor
    bounds: tuple[int, ...]
    ends: tuple[int, ...]
    cu_seqlens: torch.Tensor
    states_before: torch.Tensor
    states_after: torch.Tensor
    tables: torch.Tensor
    wanted: torch.Tensor | None = None
    last_wanted: tuple[int, ...] | None = None

    def spans(self) -> list[tuple[int, int]]:
        """The first row of each sequence that prefills, and the one behind its last."""
        bounds = [self.num_decodes + bound for bound in self.bounds]
        return list(zip(bounds, bounds[1:], strict=False))


@dataclass(frozen=True)
class PooledStates:
    """The states of one lightning layer, and the rows that read and write them.

    Attributes:
        states: [S, H, K, K] float32.
        rows: of the forward pass.
    """

    states: torch.Tensor
    rows: Rows

    def scan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """:func:`leyden.ops.lightning_attention` of q, k and v [1, T, H, K], each sequence from its own state."""
        rows, parts = self.rows, []
        for start, stop, moves in zip(rows.rounds, rows.rounds[1:], rows.moves, strict=False):
            after = rows.states_after[start:stop]
            if moves:
                self.states[after] = self.states[rows.states_before[start:stop]]
            q_row, k_row, v_row = (x[0, start:stop] for x in (q, k, v))
            parts.append(lightning_attention_decode(q_row, k_row, v_row, slopes, self.states, after)[None])
        n, stop = rows.num_decodes, len(rows.places)
        if n < stop:
            slots, (q_rows, k_rows, v_rows) = rows.states_after[n:], (x[:, n:stop] for x in (q, k, v))
            parts.append(
                lightning_attention_prefill(q_rows, k_rows, v_rows, slopes, self.states, slots, rows.cu_seqlens)
            )
        return _joined(parts, v)


@dataclass(frozen=True)
class PooledKeyValues:
    """Keys and values of one softmax layer, and the rows that read and write them.

    Attributes:
        keys, values: [P, PAGE, Hkv, D].
        rows: of the forward pass.
    """

    keys: torch.Tensor
    values: torch.Tensor
    rows: Rows

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, wanted_alone: bool = False) -> torch.Tensor:
        """Write k and v [1, T, Hkv, D] into the pages; attention of q [1, T, Hq, D] to its own sequence's.

        With ``wanted_alone`` the rows of prompts that ``rows.wanted`` does not name are zeros. The others are computed
        from where a block of queries begins (:data:`_BLOCK`), so that they have the bits they always have.
        """
        rows, n, num_rows = self.rows, self.rows.num_decodes, len(self.rows.places)
        self.keys.flatten(0, 1)[rows.places] = k[0, :num_rows]
        self.values.flatten(0, 1)[rows.places] = v[0, :num_rows]
        parts = []
        if n:
            parts.append(paged_attention(q[0, :n], self.keys, self.values, rows.tables[:n], rows.lengths)[None])
        for number, (start, stop) in enumerate(rows.spans()):
            length = rows.ends[number]
            first = start
            if wanted_alone and rows.last_wanted is not None:
                wanted = rows.last_wanted[number]
                blocks = (length - wanted) // _BLOCK * _BLOCK
                first = stop if wanted == 0 else max(start, stop - (length - blocks))
                parts.append(q.new_zeros(1, first - start, *q.shape[2:]))
            if first < stop:
                parts.append(self._of_prompt(q[0, first:stop], rows.tables[n + number], length))
        return _joined(parts, q)

    def _of_prompt(self, q: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
        """[1, T, Hq, D] of queries [T, Hq, D], the last of ``length`` positions."""
        end = -(-length // GRAIN) * GRAIN
        pages = table[: -(-length // PAGE)]
        queries = pad_rows(q, len(q) + end - length)
        keys, values = (pad_rows(x[pages].flatten(0, 1)[:length], end) for x in (self.keys, self.values))
        return softmax_attention(queries[None], keys[None], values[None])[:, : len(q)]


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The parts [1, t, ...] end to end, with zeros behind up to the rows of ``like`` [1, T, ...]."""
    missing = like.shape[1] - sum(part.shape[1] for part in parts)
    if missing:
        parts = [*parts, like.new_zeros(1, missing, *like.shape[2:])]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def pad_rows(values: torch.Tensor, length: int) -> torch.Tensor:
    """[T, ...] with zeros behind, up to ``length`` rows."""
    if len(values) == length:
        return values
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])


class Pools:
    """Slots and pages of all layers.

    Args:
        config: the shape; of a rank's part of a model, with its heads.
        num_states: slots.
        num_pages: pages of keys and values in each softmax layer; page p of one layer goes with page p of all. Behind
            them lies one more, which takes the keys and values of rows that are nobody's.
        dtype: of keys and values.
        device: of everything.

    Attributes:
        states: [lightning layers, S, H, K, K] float32.
        keys, values: [softmax layers, P + 1, PAGE, Hkv, D].
    """

    def __init__(
        self,
        config: ModelConfig,
        num_states: int,
        num_pages: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layer_types = config.layer_types
        num_softmax = self.layer_types.count("full_attention")
        heads, shared, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        lightning = (len(self.layer_types) - num_softmax, num_states, heads, width, width)
        # What nobody wrote is never read; and memory that is never written to is never taken.
        self.states = torch.empty(lightning, dtype=torch.float32, device=device)
        pages = (num_softmax, num_pages + 1, PAGE, shared, width)
        self.keys = torch.empty(pages, dtype=dtype, device=device)
        self.values = torch.empty(pages, dtype=dtype, device=device)

    def of_layers(self, rows: Rows) -> list[PooledStates | PooledKeyValues]:
        """What each layer reads and writes in the forward pass of ``rows``."""
        memories: list[PooledStates | PooledKeyValues] = []
        lightning = softmax = 0
        for kind in self.layer_types:
            if kind == "linear_attention":
                memories.append(PooledStates(self.states[lightning], rows))
                lightning += 1
            else:
                memories.append(PooledKeyValues(self.keys[softmax], self.values[softmax], rows))
                softmax += 1
        return memories

    @property
    def num_states(self) -> int:
        """Slots."""
        return self.states.shape[1]

    @property
    def num_pages(self) -> int:
        """Pages, of which sequences can have each."""
        return self.keys.shape[1] - 1

    @property
    def nowhere(self) -> int:
        """The first place, as in :attr:`Rows.places`, of the page that no sequence has."""
        return self.num_pages * PAGE

    @classmethod
    def bytes_of(cls, config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
        """Bytes of one slot, and of one page, over all layers."""
        one: Self = cls(config, 1, 0, dtype=dtype, device="meta")
        return one.states.nbytes, one.keys.nbytes + one.values.nbytes
