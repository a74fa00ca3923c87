"""Whose tokens the rows of one forward pass over many sequences are, and the sizes that rows and memory come in."""

from dataclasses import dataclass

import torch

PAGE = 256
"""Tokens of a page. Also the grid on which a text is read in parts with the same bits as whole: the longest block of
lightning attention, and a multiple of the blocks of softmax attention."""

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


def joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
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
