"""Files of every format to documents: sources are planned as shards of pieces, and each piece is read by itself."""

from leyden.data.readers.piece import Piece
from leyden.data.readers.pieces import plan_shards, source_files
from leyden.data.readers.read import READERS, read_documents, read_piece
from leyden.data.readers.settings import ReadSettings, SourceSettings

__all__ = [
    "READERS",
    "Piece",
    "ReadSettings",
    "SourceSettings",
    "plan_shards",
    "read_documents",
    "read_piece",
    "source_files",
]
