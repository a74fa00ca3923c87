"""Batches of documents that carry named values, in groups that are never split: pairs, or the answers to one prompt.

Packing is best fit, with groups in place of documents: a group is packed whole, its documents one after another, and
never cut. The packer's promise about padding is therefore not kept: groups of 0.6 sequences each are padded by 40 %.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from leyden.core.errors import UserError
from leyden.data.loader.packing import Batch, PackedBatchIterator, Segment
from leyden.data.loader.pieces import PIECE, Pieces, Stream
from leyden.data.loader.plan import BestFit
from leyden.data.loader.rows import TokenRows, lay
from leyden.data.shards import TokenShards

PADDING_GROUP = -1


@dataclass(frozen=True, eq=False)
class GroupedDocuments:
    """Documents, which of them belong together, and values that are named.

    Attributes:
        shards: the D documents.
        bounds: [G + 1] int64: group g has the documents ``bounds[g]`` to ``bounds[g + 1] - 1``.
        per_token: arrays [``shards.num_tokens``] by name, a value for each token of the documents, one document after
            another. The value of a document's first token is not used, since no loss is of that token.
        per_document: arrays [D, ...] by name.

    Raises:
        UserError: ``bounds`` do not divide the documents into groups, or an array has another length or no numbers.
    """

    shards: TokenShards
    bounds: np.ndarray
    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_document: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, bounds = self.shards.num_documents, self.bounds
        if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] or bounds[-1] != count or (np.diff(bounds) < 1).any():
            raise UserError(
                f"The bounds of groups begin with 0, rise, and end with the number of documents ({count}); given: "
                f"{bounds.tolist() if bounds.size < 20 else f'{bounds.size} numbers, which do not'}."
            )
        for name, values in self.per_token.items():
            if values.shape != (self.shards.num_tokens,):
                raise UserError(
                    f"Values for each token are one array [{self.shards.num_tokens}], as many as the documents have "
                    f"tokens; '{name}' is {list(values.shape)}."
                )
        for name, values in self.per_document.items():
            if values.shape[:1] != (count,):
                raise UserError(
                    f"Values for each document are an array [{count}, ...], one row for each document; '{name}' is "
                    f"{list(values.shape)}."
                )
        for name, values in {**self.per_token, **self.per_document}.items():
            if values.dtype.kind not in "biuf":
                raise UserError(f"The values '{name}' are {values.dtype}; give whole numbers, floats or booleans.")

    @cached_property
    def lengths(self) -> np.ndarray:
        """[G] int64, the tokens of each group."""
        return np.add.reduceat(self.shards.lengths, self.bounds[:-1])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names, dtypes and shapes of the values, which sources of one mixture have in common."""
        per_token = [f"{name} {values.dtype} a token" for name, values in self.per_token.items()]
        of_document = self.per_document.items()
        per_document = [f"{name} {values.dtype} {list(values.shape[1:])} a document" for name, values in of_document]
        return ("groups of documents", *sorted(per_token), *sorted(per_document))

    @cached_property
    def fingerprint(self) -> str:
        """Of all that is given: other documents, groups or values have another. It reads all values once."""
        found = hashlib.sha256(self.shards.fingerprint.encode() + self.bounds.astype(np.int64).tobytes())
        for kind, arrays in (("per_token", self.per_token), ("per_document", self.per_document)):
            for name, values in sorted(arrays.items()):
                found.update(json.dumps([kind, name, str(values.dtype), values.shape]).encode())
                found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()

    @cached_property
    def joined(self) -> TokenShards:
        """Each group as one document, for packers, which look at lengths alone."""
        first = self.bounds[:-1]
        return replace(
            self.shards,
            fingerprint=self.fingerprint,
            lengths=self.lengths,
            starts=self.shards.starts[first],
            rows=self.shards.rows[first],
        )

    @cached_property
    def _first_token(self) -> np.ndarray:
        """[D] int64, where the values of each document begin in the arrays of ``per_token``."""
        return np.cumsum(self.shards.lengths) - self.shards.lengths

    def of_length(self, above: int, up_to: int | None) -> "GroupedDocuments | None":
        """The groups of more than ``above`` and at most ``up_to`` tokens (None: no bound), with their values.

        None where there are none.
        """
        chosen = self.lengths > above
        if up_to is not None:
            chosen &= self.lengths <= up_to
        if not chosen.any():
            return None
        documents = np.repeat(chosen, np.diff(self.bounds))
        tokens = np.repeat(documents, self.shards.lengths)
        return GroupedDocuments(
            self.shards.select(documents, f"groups of length in ({above}, {up_to}]"),
            np.concatenate([[0], np.cumsum(np.diff(self.bounds)[chosen])]),
            {name: values[tokens] for name, values in self.per_token.items()},
            {name: values[documents] for name, values in self.per_document.items()},
        )

    def documents(self, groups: Pieces) -> tuple[Pieces, np.ndarray]:
        """The documents of some sequences of groups, and which of those groups each is in: [documents] int64."""
        chosen = groups.pieces["document"]
        first, sizes = self.bounds[chosen], np.diff(self.bounds)[chosen]
        ends = np.cumsum(sizes)
        group = np.repeat(np.arange(len(chosen)), sizes)
        document = np.arange(len(group)) + (first - ends + sizes)[group]
        pieces = np.zeros(len(group), PIECE)
        pieces["document"], pieces["length"] = document, self.shards.lengths[document]
        return Pieces(pieces, np.concatenate([[0], ends])[groups.bounds]), group

    def values(self, name: str, documents: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
        """The ``per_token`` values of some documents, laid out as their labels.

        Args:
            name: which values.
            documents: their numbers.
            starts: where each begins in the result.
            size: of the result.

        Returns:
            [size], 0 where there is no value.
        """
        given, lengths = self.per_token[name], self.shards.lengths[documents]
        result = np.zeros(size, given.dtype)
        places = zip(starts.tolist(), self._first_token[documents].tolist(), lengths.tolist(), strict=True)
        for start, first, length in places:
            result[start : start + length - 1] = given[first + 1 : first + length]
        return result


class GroupStream:
    """Sequences of whole groups, packed by best fit; a :class:`leyden.data.loader.pieces.Stream` of their documents.

    Args:
        documents: in groups.
        seq_len: tokens of a sequence, at least those of the longest group.
        seed, plans: as of :class:`leyden.data.loader.plan.BestFit`.

    Raises:
        UserError: a group is longer than a sequence.
    """

    def __init__(self, documents: GroupedDocuments, *, seq_len: int, seed: int, plans: Path | None = None) -> None:
        _check_lengths(documents, seq_len)
        self._documents, shards = documents, documents.shards
        self._groups: Stream = BestFit(documents.joined, seq_len=seq_len, seed=seed, max_padding=1.0, plans=plans)
        self.shards, self.seq_len, self.fingerprint = shards, seq_len, self._groups.fingerprint

    def pieces(self, first: int, count: int) -> Pieces:
        """The documents that ``count`` sequences from number ``first`` on hold."""
        return self._documents.documents(self._groups.pieces(first, count))[0]

    def tokens_before(self, sequence: int) -> int:
        """Tokens of documents in all sequences before number ``sequence``."""
        return self._groups.tokens_before(sequence)

    def rows(self, first: int, count: int) -> TokenRows:
        """``count`` sequences from number ``first`` on, with the values of their documents."""
        given = self._documents
        held, group = given.documents(self._groups.pieces(first, count))
        rows = lay(given.shards, held, self.seq_len)
        document = held.pieces["document"]
        # Padding is a segment as well: the last one of every sequence that has more segments than documents.
        is_padding = np.zeros(len(rows.segments), bool)
        is_padding[np.cumsum(rows.counts)[rows.counts > np.diff(held.bounds)] - 1] = True
        segment = np.flatnonzero(~is_padding)
        starts, size = (np.cumsum(rows.segments) - rows.segments)[segment], count * self.seq_len

        def of_segments(values: np.ndarray, padding: int) -> np.ndarray:
            result = np.full((len(is_padding), *values.shape[1:]), padding, values.dtype)
            result[segment] = values
            return result

        return replace(
            rows,
            per_token={name: given.values(name, document, starts, size).reshape(count, -1) for name in given.per_token},
            per_document={name: of_segments(values[document], 0) for name, values in given.per_document.items()},
            groups=of_segments(group, PADDING_GROUP),
        )


class GroupedBatches(PackedBatchIterator):
    """Batches of whole groups, with their values: see :class:`leyden.data.Batch`.

    Args:
        documents: in groups.
        seq_len: tokens of a sequence, at least those of the longest group.
        batch_tokens: a multiple of it.
        seed: of the order.
        plans: as of :class:`leyden.data.PackedBatches`.

    Raises:
        UserError: ``batch_tokens`` is not a positive multiple of ``seq_len``, or a group is longer than a sequence.
    """

    def __init__(
        self, documents: GroupedDocuments, *, seq_len: int, batch_tokens: int, seed: int, plans: Path | None = None
    ) -> None:
        super().__init__(seq_len=seq_len, batch_tokens=batch_tokens)
        self._stream = GroupStream(documents, seq_len=seq_len, seed=seed, plans=plans)
        settings = {"stream": self._stream.fingerprint, "batch_tokens": batch_tokens}
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def epochs_before(self, batch: int) -> float:
        """How often the groups are gone through in the batches before number ``batch``, as a fraction."""
        before = self._stream.tokens_before(batch * self.sequences_per_batch)
        return before / self._stream.shards.num_tokens

    def sequences(self, first: int, count: int) -> Batch:
        """``count`` sequences of the stream from number ``first`` on, as one batch."""
        return Batch.of(self._stream.rows(first, count))

    def trace(self, number: int) -> list[Segment]:
        """Where the segments of batch ``number`` are from, in order, padding left out."""
        shards, held = self._stream.shards, self._stream.pieces(*self._run(number, 0, 1))
        return [Segment(shards.source(d), shards.id(d), offset, length) for d, offset, length in held.pieces.tolist()]


def _check_lengths(documents: GroupedDocuments, seq_len: int) -> None:
    longest = int(documents.lengths.argmax())
    tokens = int(documents.lengths[longest])
    if tokens <= seq_len:
        return
    first, behind = documents.bounds[longest : longest + 2].tolist()
    ids = [documents.shards.id(number) for number in range(first, min(behind, first + 4))]
    raise UserError(
        f"A group is never split, so that each must fit in one sequence of {seq_len} tokens; "
        f"{int((documents.lengths > seq_len).sum())} of {len(documents.lengths)} do not. The longest has {tokens} "
        f"tokens (documents {', '.join(ids)}{' and more' if behind - first > 4 else ''}). Make seq_len at least "
        f"{tokens}, or leave out or shorten long documents."
    )
