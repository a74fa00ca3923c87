"""One step of the model over many sequences: some read a part of their prompt, others one more token each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from leyden.model import HybridLM, NativeDecoder, Pools, Rows
from leyden.model.pools import GRAIN, pad_rows


class Reading(NamedTuple):
    """What one sequence reads in a step.

    Attributes:
        tokens: at least one.
        start: how many tokens of the sequence were read before.
        pages: of the sequence, enough for all its tokens up to the last of these.
        states: the slot of its state, behind which come, where it decodes, the slots that take the state behind each
            token (the same slot again, as a rule; others where the token may yet be taken back).
        wanted: of how many of the last tokens the logits are asked for.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    states: Sequence[int]
    wanted: int = 1

    @property
    def stop(self) -> int:
        """How many tokens of the sequence have been read behind it."""
        return self.start + len(self.tokens)


class Runner:
    """Runs the model's own modules, on any device, and the native step in their place where there is one.

    Args:
        model: in evaluation mode.
        pools: what the sequences' slots and pages lie in.
        native: reads the tokens of those that decode, in the same pools. None: the modules do.
    """

    def __init__(self, model: HybridLM, pools: Pools, native: NativeDecoder | None = None) -> None:
        self.model = model
        self.pools = pools
        self.native = native

    def run(self, decodes: Sequence[Reading], prefills: Sequence[Reading]) -> torch.Tensor:
        """Read all of them.

        Args:
            decodes: token by token, by the recurrence.
            prefills: in blocks. A sequence must go on at a multiple of :data:`leyden.model.PAGE`: only there do parts
                give the bits of the whole.

        Returns:
            The logits [R, V] in float32 of the wanted tokens, in the order of ``decodes`` and then ``prefills``.
        """
        if self.native is None or not decodes:
            return self._run(decodes, prefills)
        decoded = self.native.run(decodes)
        return torch.cat([decoded, self._run([], prefills)]) if prefills else decoded

    @torch.inference_mode()
    def _run(self, decodes: Sequence[Reading], prefills: Sequence[Reading]) -> torch.Tensor:
        """By the modules."""
        device = self.pools.states.device
        rounds, order = _rounds(decodes)
        tokens = [decodes[i].tokens[j] for i, j in order]
        positions = [decodes[i].start + j for i, j in order]
        tables = [decodes[i].pages for i, _ in order] + [reading.pages for reading in prefills]
        before = [decodes[i].states[j] for i, j in order] + [reading.states[0] for reading in prefills]
        after = [decodes[i].states[j + 1] for i, j in order] + [reading.states[0] for reading in prefills]
        cu_seqlens = [0]
        row_of = {place: row for row, place in enumerate(order)}
        wanted = [row_of[i, j] for i, r in enumerate(decodes) for j in range(len(r.tokens) - r.wanted, len(r.tokens))]
        for reading in prefills:
            tokens += reading.tokens
            positions += range(reading.start, reading.stop)
            cu_seqlens.append(cu_seqlens[-1] + len(reading.tokens))
            wanted += range(len(tokens) - reading.wanted, len(tokens))
        fresh = [reading.states[0] for reading in (*decodes, *prefills) if reading.start == 0]
        self.pools.states[:, fresh] = 0
        rows = Rows(
            positions=torch.tensor(positions, device=device),
            num_decodes=len(order),
            rounds=rounds,
            cu_seqlens=tuple(cu_seqlens),
            states_before=torch.tensor(before, dtype=torch.int64, device=device),
            states_after=torch.tensor(after, dtype=torch.int64, device=device),
            tables=_tables(tables, device),
            wanted=pad_rows(torch.tensor(wanted, dtype=torch.int64, device=device), _padded(len(wanted))),
            last_wanted=tuple(reading.wanted for reading in prefills),
        )
        ids = pad_rows(torch.tensor(tokens, device=device), _padded(len(tokens)))
        hidden = self.model.read(ids, rows, self.pools)
        if not wanted:
            return hidden.new_empty(0, self.model.config.vocab_size, dtype=torch.float32)
        return self.model.logits(hidden)[: len(wanted)]


def _rounds(decodes: Sequence[Reading]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The bounds of the rounds, and the (reading, token) of every row: first tokens first."""
    longest = max((len(reading.tokens) for reading in decodes), default=0)
    bounds, order = [0], []
    for j in range(longest):
        order += [(i, j) for i, reading in enumerate(decodes) if len(reading.tokens) > j]
        bounds.append(len(order))
    return tuple(bounds), order


def _tables(pages: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    width = max(map(len, pages))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in pages], dtype=torch.int32, device=device)


def _padded(num_rows: int) -> int:
    return max(1, -(-num_rows // GRAIN)) * GRAIN
