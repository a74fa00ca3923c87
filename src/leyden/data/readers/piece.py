"""A part of a source that is read in one go, and what its reader yields: the types that all readers share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from leyden.data.documents import Document
from leyden.data.readers.problem import Problem
from leyden.data.readers.settings import ReadSettings
from leyden.data.sources import SourceFile

Found = tuple[str, Document | Problem]
"""What a reader yields: a place in the file, and the document there or why there is none."""


@dataclass(frozen=True)
class Piece:
    """A part of a source that is read in one go.

    Attributes:
        source: the file.
        format: a key of :data:`~leyden.data.sources.FORMATS`.
        num_bytes: of the file that belong to it, about.
        start, end: where its lines or records begin, in bytes, or its row groups; ``end`` is excluded, and None where
            the piece is the whole file.
    """

    source: SourceFile
    format: str
    num_bytes: int
    start: int = 0
    end: int | None = None


Reader = Callable[[Piece, ReadSettings], Iterator[Found]]
