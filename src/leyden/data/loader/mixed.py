"""Batches from several sources: each sequence from the one whose turn it is, packed by best fit within its source.

Sources are documents, or documents in groups (:mod:`leyden.data.loader.grouped`): of these each sequence has whole
groups of one source, and their values.
"""

import hashlib
import json
import math
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leyden.core.errors import UserError
from leyden.data.loader.grouped import PADDING_GROUP, GroupedDocuments, GroupStream
from leyden.data.loader.mixture_schedule import TimedMixture, check_names
from leyden.data.loader.mixture_shares import Component, Shares
from leyden.data.loader.packing import Batch, PackedBatchIterator, Segment
from leyden.data.loader.pieces import Stream
from leyden.data.loader.plan import BestFit
from leyden.data.loader.rows import TokenRows, make_rows
from leyden.data.loader.turns import Turns
from leyden.data.shards import TokenShards


@dataclass(frozen=True)
class Planned:
    """What a component gives in a number of batches.

    Attributes:
        source: its name.
        longer_than, up_to: bounds of its documents' lengths in tokens; None: no bound.
        documents: that there are.
        sequences: that are taken.
        tokens: of documents in them, padding not counted.
        epochs: how often the documents are used: each the whole number below or above it.
        max_epochs: how often they may be, if that is bounded.
    """

    source: str
    longer_than: int
    up_to: int | None
    documents: int
    sequences: int
    tokens: int
    epochs: float
    max_epochs: float | None


class MixedBatches(PackedBatchIterator):
    """An endless iterator of batches of a mixture.

    Args:
        sources: shards by name, of one tokenizer; or grouped documents by name, which carry the same values. A class of
            lengths is then one of lengths of groups.
        mixture: their weights along the stage. Those of a batch are those at its first token, whatever steps are
            made of batches.
        seq_len: tokens of a sequence.
        batch_tokens: a multiple of it.
        seed: of the order.
        max_padding, plans: of the packing, as of :class:`leyden.data.loader.packing.PackedBatches`.

    Raises:
        UserError: ``batch_tokens`` is not a positive multiple of ``seq_len``; the mixture names other sources than
            there are; sources of different tokenizers, or of different values; a weight that no document can meet; a
            group is longer than a sequence.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenShards] | Mapping[str, GroupedDocuments],
        mixture: TimedMixture,
        *,
        seq_len: int,
        batch_tokens: int,
        seed: int,
        max_padding: float = 0.01,
        plans: Path | None = None,
    ) -> None:
        super().__init__(seq_len=seq_len, batch_tokens=batch_tokens)
        self._mixture = mixture.schedule
        check_names(self._mixture, sources)
        _check_alike(sources)
        self._streams: list[Stream] = []
        self._components: list[Component] = []
        for name in sorted(sources):
            for number, (above, up_to) in enumerate(self._mixture.classes()):
                # One class is not cut out, so that it costs no copy of the lengths.
                chosen = sources[name] if self._mixture.num_classes == 1 else sources[name].of_length(above, up_to)
                if isinstance(chosen, GroupedDocuments):
                    stream = GroupStream(chosen, seq_len=seq_len, seed=seed, plans=plans)
                elif chosen is not None and chosen.num_documents:
                    stream = BestFit(chosen, seq_len=seq_len, seed=seed, max_padding=max_padding, plans=plans)
                else:
                    continue
                self._streams.append(stream)
                self._components.append(Component(name, number, stream.shards.num_tokens))
        shares = Shares(mixture, self._components)
        self._turns = Turns(shares, len(self._components), batch_tokens, self.sequences_per_batch)
        self._lock = threading.Lock()
        settings = {
            "streams": [stream.fingerprint for stream in self._streams],
            "mixture": mixture.described(),
            "batch_tokens": batch_tokens,
        }
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def plan(self, batches: int) -> tuple[Planned, ...]:
        """What each component gives in the first ``batches`` batches, and how often it repeats.

        Raises:
            UserError: one would repeat more often than the mixture's ``max_epochs`` allows; where it runs dry, and
                what would be enough.
        """
        counts = self._before(batches * self.sequences_per_batch).tolist()
        classes = list(self._mixture.classes())
        planned = []
        for component, stream, count in zip(self._components, self._streams, counts, strict=True):
            tokens = stream.tokens_before(count)
            above, up_to = classes[component.length_class]
            planned.append(
                Planned(
                    source=component.source,
                    longer_than=above,
                    up_to=up_to,
                    documents=stream.shards.num_documents,
                    sequences=count,
                    tokens=tokens,
                    epochs=tokens / component.tokens,
                    max_epochs=self._mixture.max_epochs.get(component.source),
                )
            )
        for number, one in enumerate(planned):
            if one.max_epochs is not None and one.epochs > one.max_epochs:
                raise _runs_dry(one, self._dry_batch(number, one.max_epochs, batches) * self.batch_tokens, planned)
        return tuple(planned)

    def _dry_batch(self, number: int, max_epochs: float, batches: int) -> int:
        """The batch in which component ``number`` is used more than ``max_epochs`` times, of ``batches``."""
        stream, allowed = self._streams[number], max_epochs * self._components[number].tokens

        def used(batch: int) -> int:
            return stream.tokens_before(int(self._before((batch + 1) * self.sequences_per_batch)[number]))

        return bisect_right(range(batches), allowed, key=used)

    def trace(self, number: int) -> list[Segment]:
        """Where the segments of batch ``number`` are from, in order, padding left out."""
        turns, before = self._of(*self._run(number, 0, 1))
        segments = []
        for place, turn in enumerate(turns.tolist()):
            shards = self._streams[turn].shards
            name = self._components[turn].source
            nth = int(before[turn] + np.count_nonzero(turns[:place] == turn))
            pieces = self._streams[turn].pieces(nth, 1).pieces.tolist()
            segments += [Segment(name, shards.id(d), offset, length) for d, offset, length in pieces]
        return segments

    def _of(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            return self._turns.of(first, count)

    def _before(self, sequence: int) -> np.ndarray:
        with self._lock:
            return self._turns.before(sequence)

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences of the mixture from number ``first`` on, as one batch."""
        turns, before = self._of(first, count)
        present = np.unique(turns)
        places = [np.flatnonzero(turns == turn) for turn in present]
        parts = [
            _rows(self._streams[turn], int(before[turn]), len(place))
            for turn, place in zip(present, places, strict=True)
        ]
        return Batch.of(parts[0] if len(parts) == 1 else _interleave(parts, places, self.seq_len))


def _rows(stream: Stream, first: int, count: int) -> TokenRows:
    """``count`` sequences of a source, with the values of their documents if these have some."""
    return stream.rows(first, count) if isinstance(stream, GroupStream) else make_rows(stream, first, count)


def _interleave(parts: list[TokenRows], places: list[np.ndarray], seq_len: int) -> TokenRows:
    """The rows of several sources, each at its places, as one."""
    count = sum(len(place) for place in places)
    tokens, labels = np.empty((2, count, seq_len), np.int64)
    counts = np.empty(count, np.int64)
    per_token = {name: np.empty((count, seq_len), values.dtype) for name, values in parts[0].per_token.items()}
    for part, place in zip(parts, places, strict=True):
        tokens[place], labels[place], counts[place] = part.tokens, part.labels, part.counts
        for name, values in per_token.items():
            values[place] = part.per_token[name]
    row_of_segment = np.concatenate([np.repeat(place, part.counts) for part, place in zip(parts, places, strict=True)])
    order = np.argsort(row_of_segment, kind="stable")
    per_document = {
        name: np.concatenate([p.per_document[name] for p in parts])[order] for name in parts[0].per_document
    }
    segments = np.concatenate([part.segments for part in parts])[order]
    return TokenRows(tokens, labels, segments, counts, per_token, per_document, _numbered(parts, order))


def _numbered(parts: list[TokenRows], order: np.ndarray) -> np.ndarray | None:
    """The groups of interleaved rows, counted anew in the order in which they stand; None where there are none."""
    groups, behind = [], 0
    for part in parts:
        if part.groups is None:
            return None
        groups.append(np.where(part.groups < 0, PADDING_GROUP, part.groups + behind))
        behind += int(part.groups.max(initial=PADDING_GROUP)) + 1
    found = np.concatenate(groups)[order]
    held = found >= 0
    _, first, inverse = np.unique(found[held], return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))  # a group's documents follow each other
    found[held] = number[inverse]
    return found


def _check_alike(sources: Mapping[str, TokenShards] | Mapping[str, GroupedDocuments]) -> None:
    found: dict[str, str] = {}
    carried: dict[object, str] = {}
    for name, source in sources.items():
        shards = source.shards if isinstance(source, GroupedDocuments) else source
        carried.setdefault(source.kinds if isinstance(source, GroupedDocuments) else None, name)
        if shards.tokenizer_fingerprint:
            found.setdefault(shards.tokenizer_fingerprint, name)
    if len(found) > 1:
        raise UserError(
            f"sources of one mixture must be tokenised alike; {' and '.join(found.values())} are of different "
            "tokenizers. Tokenise them anew with one."
        )
    if len(carried) > 1:
        told = "; ".join(f"'{name}' has {kinds or 'documents without groups'}" for kinds, name in carried.items())
        raise UserError(f"sources of one mixture must carry the same values in groups, or all be without: {told}.")


def _runs_dry(one: Planned, at_tokens: int, planned: Sequence[Planned]) -> UserError:
    """Why a component cannot give what is asked of it, where it stops, and what would be enough."""
    assert one.max_epochs is not None, "without a bound none runs dry"
    bound = f", longer than {one.longer_than:,} tokens" if one.longer_than else ""
    bound += f", up to {one.up_to:,} tokens long" if one.up_to else ""
    have, share = one.tokens / one.epochs, one.tokens / sum(other.tokens for other in planned)
    return UserError(
        f"source '{one.source}'{bound and bound + ','} runs dry after {at_tokens:,} tokens of the stage: it has "
        f"{have:,.0f} tokens in {one.documents:,} documents, which would be used {one.epochs:.2f} times, more than its "
        f"max_epochs ({one.max_epochs:g}). Enough would be {one.tokens / one.max_epochs:,.0f} tokens of it; or "
        f"{share * one.max_epochs / one.epochs:.2%} of the mixture in place of {share:.2%}; or max_epochs = "
        f"{math.ceil(one.epochs)}; or a shorter stage."
    )
