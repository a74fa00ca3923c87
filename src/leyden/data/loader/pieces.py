"""What sequences are made of: pieces of documents, and the streams that say which pieces stand in which sequence."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leyden.data.shards import TokenShards

PIECE = np.dtype([("document", "<i8"), ("offset", "<i8"), ("length", "<i4")])
"""Part of a document, or all of it: its number, the first token taken, and how many."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """What some consecutive sequences hold.

    Attributes:
        pieces: [P] of :data:`PIECE`, in order.
        bounds: [sequences + 1] int64, the first piece of each sequence, and P.
    """

    pieces: np.ndarray
    bounds: np.ndarray

    @classmethod
    def join(cls, parts: "list[Pieces]") -> "Pieces":
        """Sequences after sequences."""
        if len(parts) == 1:
            return parts[0]
        shifts = np.cumsum([0, *(len(part.pieces) for part in parts)])
        bounds = [part.bounds[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(np.concatenate([part.pieces for part in parts]), np.concatenate([*bounds, shifts[-1:]]))


class Stream(Protocol):
    """An endless row of sequences, each known from its number alone.

    Attributes:
        shards: the documents.
        seq_len: tokens of a sequence; what its pieces leave over is padded.
        fingerprint: of the row; another row has another.
    """

    @property
    def shards(self) -> TokenShards: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def pieces(self, first: int, count: int) -> Pieces:
        """What ``count`` sequences from number ``first`` on hold."""
        ...

    def tokens_before(self, sequence: int) -> int:
        """Tokens of documents, padding not counted, in all sequences before number ``sequence``."""
        ...
