"""Documents to packed batches: reading, splitting off what is held out, token shards, and exact resume.

This is the simple path, for corpora that one machine reads in minutes: it keeps the documents in memory until they are
tokens. Tokens stay on disk.
"""

from leyden.data.corpus import Corpus, CorpusReport, build_corpus
from leyden.data.documents import Document, Reject, read_documents
from leyden.data.packing import Batch, PackedBatches
from leyden.data.shards import TokenShards, write_shards
from leyden.data.sources import SourceFile, find_sources, standard_library_sources

__all__ = [
    "Batch",
    "Corpus",
    "CorpusReport",
    "Document",
    "PackedBatches",
    "Reject",
    "SourceFile",
    "TokenShards",
    "build_corpus",
    "find_sources",
    "read_documents",
    "standard_library_sources",
    "write_shards",
]
