"""One step of the model over many sequences: some read a part of their prompt, others one more token each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from leyden.core.transfers import fetch, on_device, send
from leyden.model import PAGE, HybridLM, Inserts, NativeDecoder, Pools, Rows, evaluation_mode
from leyden.model.rows import GRAIN
from leyden.serve.graphs import DecodeGraphs
from leyden.serve.inserts import Insert
from leyden.serve.sampling import TokenLogprobs, measure, reports

_SCORED_ROWS = 128
"""Of a prompt that is scored, how many rows of logits exist at once: 100 MB in float32 at 200,000 words."""


@dataclass(eq=False)
class PromptScores:
    """Log-probabilities that a reading is asked for, of tokens of its prompt.

    Attributes:
        tokens: those that follow the reading's tokens, from that behind the first one on.
        top: how many of the most probable tokens are reported in each place.
        found: one for each of ``tokens``, once they have been read.
    """

    tokens: Sequence[int]
    top: int
    found: list[TokenLogprobs] = field(default_factory=list)


class Reading(NamedTuple):
    """What one sequence reads in a step.

    Attributes:
        tokens: at least one.
        start: how many tokens of the sequence were read before.
        pages: of the sequence, enough for all its tokens up to the last of these.
        states: the slot of its state, behind which come, where it decodes, the slots that take the state behind each
            token (the same slot again, as a rule; others where the token may yet be taken back).
        wanted: of how many of the last tokens the logits are asked for.
        scores: of a prompt, the log-probabilities that are asked for; the runner puts them there.
        inserts: of the sequence, which stand in the place of some of these tokens or of others; of prompts alone.
        adapter: that it is computed with; ``""`` for none.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    states: Sequence[int]
    wanted: int = 1
    scores: PromptScores | None = None
    inserts: Sequence[Insert] = ()
    adapter: str = ""

    @property
    def num_hidden(self) -> int:
        """Of how many of the last tokens the hidden states are needed."""
        return self.wanted if self.scores is None else len(self.tokens)

    @property
    def stop(self) -> int:
        """How many tokens of the sequence have been read behind it."""
        return self.start + len(self.tokens)


class Runner:
    """Runs the model's own modules, on any device, and a faster step in their place where there is one.

    All that a step needs to know goes to the device by one copy, and nothing comes back from it but the logits, and the
    log-probabilities of prompts, whose logits exist for a block of rows at a time.

    Args:
        model: which computes in evaluation mode, whatever mode it is in.
        pools: what the sequences' slots and pages lie in.
        decoder: reads the tokens of those that decode, in the same pools; :class:`DecodeGraphs` where nothing prefills
            beside them. None: the modules do.
    """

    def __init__(self, model: HybridLM, pools: Pools, decoder: NativeDecoder | DecodeGraphs | None = None) -> None:
        self.model = model
        self.pools = pools
        self.decoder = decoder
        self._modules = list(model.modules())

    @property
    def mixes(self) -> bool:
        """Whether it reads prompts and single tokens together in less time than one after the other."""
        return not isinstance(self.decoder, NativeDecoder)

    def run(self, decodes: Sequence[Reading], prefills: Sequence[Reading]) -> torch.Tensor:
        """Read all of them.

        Args:
            decodes: token by token, by the recurrence.
            prefills: in blocks. A sequence must go on at a multiple of :data:`leyden.model.PAGE`: only there do parts
                give the bits of the whole.

        Returns:
            The logits [R, V] in float32 of the wanted tokens, in the order of ``decodes`` and then ``prefills``; good
            until the next call.
        """
        if any(reading.inserts for reading in decodes):
            raise ValueError("tokens that decode were drawn from the vocabulary, and have no inserts; prompts may.")
        native = self.decoder if decodes and isinstance(self.decoder, NativeDecoder) else None
        if native and not prefills:
            return native.run(decodes)
        with on_device(self.pools.device), evaluation_mode(self._modules):
            if native:
                return torch.cat([native.run(decodes), self._run([], prefills)])
            if isinstance(self.decoder, DecodeGraphs) and not prefills:
                logits = self.decoder.run(decodes)
                return self._run(decodes, []) if logits is None else logits
            return self._run(decodes, prefills)

    @property
    def goes_on(self) -> bool:
        """Whether :meth:`run_next` can read what follows the last call's tokens."""
        return isinstance(self.decoder, NativeDecoder) and self.decoder.goes_on

    def run_next(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read the next token of each sequence that decoded in the last call, into the pages and the slot it has.

        Args:
            tokens: one of each sequence, in the last call's order.

        Returns:
            The logits [R, V] in float32 of all of them; good until the next call.

        Raises:
            ValueError: the last call's sequences cannot go on so (:attr:`goes_on`).
        """
        if not isinstance(self.decoder, NativeDecoder):
            raise ValueError("only a native step goes on from the one before; use run.")
        return self.decoder.run_next(tokens)

    @torch.inference_mode()
    def _run(self, decodes: Sequence[Reading], prefills: Sequence[Reading]) -> torch.Tensor:
        """By the modules."""
        for reading in (*decodes, *prefills):
            if reading.start == 0:
                self.pools.begin(reading.states[0])
        ids, rows, num_hidden = self._rows(decodes, prefills)
        if self.model.adapters is not None:
            self.model.adapters.rows.choose(_adapters(decodes, prefills), self.pools.device)
        hidden = self.model.read(ids, rows, self.pools, _inserts(rows.num_decodes, prefills, self.pools.device))
        wanted: list[int] = list(range(sum(reading.wanted for reading in decodes)))
        end = len(wanted)
        for reading in prefills:
            start, end = end, end + reading.num_hidden
            wanted += range(end - reading.wanted, end)
            if reading.scores is not None:
                self._score(hidden[start:end], reading.scores)
        if not wanted:
            return hidden.new_empty(0, self.model.config.vocab_size, dtype=torch.float32)
        if len(wanted) < num_hidden:
            (index,) = send([np.asarray(_filled(wanted), np.int64)], hidden.device)
            hidden = hidden[index]
        return self.model.logits(hidden)[: len(wanted)]

    def _score(self, hidden: torch.Tensor, scores: PromptScores) -> None:
        """By the hidden states [T, D] of a reading's tokens."""
        count = len(scores.tokens)
        if not count:
            return
        (ids,) = send([np.asarray(scores.tokens, np.int64)], hidden.device)
        blocks = [
            self._measured(rows, some, scores.top)
            for rows, some in zip(hidden[:count].split(_SCORED_ROWS), ids.split(_SCORED_ROWS), strict=True)
        ]
        measured = fetch([torch.cat(parts) for parts in zip(*blocks, strict=True)])
        scores.found = reports(scores.tokens, [scores.top] * count, measured)

    def _measured(self, hidden: torch.Tensor, tokens: torch.Tensor, top: int) -> list[torch.Tensor]:
        """What :func:`measure` gives of tokens [R] by the hidden states [R, D] of those before them."""
        logits = self.model.logits(pad(hidden, (0, 0, 0, -len(hidden) % GRAIN)))
        return measure(logits[: len(hidden)], tokens, [top] * len(hidden))

    def _rows(self, decodes: Sequence[Reading], prefills: Sequence[Reading]) -> tuple[torch.Tensor, Rows, int]:
        """The ids, whose they are, and of how many rows the hidden states are needed."""
        rounds, order = _rounds(decodes)
        counts = [len(reading.tokens) for reading in prefills]
        bounds = [0, *accumulate(counts)]
        n, num_rows = len(order), len(order) + bounds[-1]
        ids, positions = np.zeros((2, _padded(num_rows)), np.int64)
        ids[:n] = [decodes[i].tokens[j] for i, j in order]
        positions[:n] = [decodes[i].start + j for i, j in order]
        for reading, start, stop in zip(prefills, bounds, bounds[1:], strict=False):
            ids[n + start : n + stop] = reading.tokens
            positions[n + start : n + stop] = range(reading.start, reading.stop)
        tables = _tables([decodes[i].pages for i, _ in order] + [reading.pages for reading in prefills])
        owner = np.repeat(np.arange(len(tables)), [1] * n + counts)
        pages, offsets = np.divmod(positions[:num_rows], PAGE)
        first = [reading.states[0] for reading in prefills]
        before = [decodes[i].states[j] for i, j in order] + first
        after = [decodes[i].states[j + 1] for i, j in order] + first
        wanted = _wanted(decodes, order) + [
            n + row
            for reading, stop in zip(prefills, bounds[1:], strict=True)
            for row in range(stop - reading.num_hidden, stop)
        ]
        sent = send(
            [
                ids,
                positions,
                tables[owner, pages].astype(np.int64) * PAGE + offsets,
                np.asarray(before, np.int64),
                np.asarray(after, np.int64),
                np.asarray(_filled(wanted), np.int64),
                (positions[:n] + 1).astype(np.int32),
                np.asarray(bounds, np.int32),
                tables,
            ],
            self.pools.device,
        )
        rows = Rows(
            positions=sent[1],
            places=sent[2],
            num_decodes=n,
            rounds=rounds,
            moves=tuple(before[a:b] != after[a:b] for a, b in zip(rounds, rounds[1:], strict=False)),
            lengths=sent[6],
            bounds=tuple(bounds),
            ends=tuple(reading.stop for reading in prefills),
            cu_seqlens=sent[7],
            states_before=sent[3],
            states_after=sent[4],
            tables=sent[8],
            wanted=sent[5],
            last_wanted=tuple(reading.num_hidden for reading in prefills),
        )
        return sent[0], rows, len(wanted)


def _adapters(decodes: Sequence[Reading], prefills: Sequence[Reading]) -> list[str]:
    """Of every row the name of its adapter."""
    _, order = _rounds(decodes)
    return [decodes[i].adapter for i, _ in order] + [one.adapter for one in prefills for _ in one.tokens]


def _inserts(first_row: int, prefills: Sequence[Reading], device: torch.device) -> Inserts | None:
    """Those that stand in the place of tokens of this pass, whose prefills begin at ``first_row``."""
    places, vectors = [], []
    for reading in prefills:
        for insert in reading.inserts:
            start, stop = max(insert.start, reading.start), min(insert.stop, reading.stop)
            if start < stop:
                places += range(first_row + start - reading.start, first_row + stop - reading.start)
                vectors.append(insert.vectors[start - insert.start : stop - insert.start].to(device))
        first_row += len(reading.tokens)
    return Inserts(torch.tensor(places, device=device), torch.cat(vectors)) if vectors else None


def _rounds(decodes: Sequence[Reading]) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The bounds of the rounds, and the (reading, token) of every row: first tokens first."""
    longest = max((len(reading.tokens) for reading in decodes), default=0)
    bounds, order = [0], []
    for j in range(longest):
        order += [(i, j) for i, reading in enumerate(decodes) if len(reading.tokens) > j]
        bounds.append(len(order))
    return tuple(bounds), order


def _wanted(decodes: Sequence[Reading], order: Sequence[tuple[int, int]]) -> list[int]:
    """The rows of the decodes' wanted tokens, reading by reading."""
    row_of = {place: row for row, place in enumerate(order)}
    return [row_of[i, j] for i, r in enumerate(decodes) for j in range(len(r.tokens) - r.wanted, len(r.tokens))]


def _tables(pages: Sequence[Sequence[int]]) -> np.ndarray:
    """[sequences, pages of the longest] int32."""
    tables = np.zeros((len(pages), max(map(len, pages))), np.int32)
    for row, own in zip(tables, pages, strict=True):
        row[: len(own)] = own
    return tables


def _filled(rows: Sequence[int]) -> list[int]:
    """With the first row again and again behind them, up to a whole number of grains."""
    return [*rows, *[0] * (_padded(len(rows)) - len(rows))]


def _padded(num_rows: int) -> int:
    return max(1, -(-num_rows // GRAIN)) * GRAIN
