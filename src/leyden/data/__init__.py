"""Documents to packed batches: reading, cleaning, deduplication, labels, mixtures, token shards, and exact resume.

Names resolve lazily (PEP 562): processes that only handle documents need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.data.corpus import Corpus as Corpus
    from leyden.data.corpus import CorpusReport as CorpusReport
    from leyden.data.corpus import build_corpus as build_corpus
    from leyden.data.documents import Document as Document
    from leyden.data.documents import Documents as Documents
    from leyden.data.documents import Message as Message
    from leyden.data.documents import Reject as Reject
    from leyden.data.packing import Batch as Batch
    from leyden.data.packing import PackedBatches as PackedBatches
    from leyden.data.readers import read_documents as read_documents
    from leyden.data.shards import TokenShards as TokenShards
    from leyden.data.tokenise import write_shards as write_shards
    from leyden.data.sources import SourceFile as SourceFile
    from leyden.data.sources import find_sources as find_sources
    from leyden.data.sources import standard_library_sources as standard_library_sources

_HOMES = {
    "Batch": "packing",
    "Corpus": "corpus",
    "CorpusReport": "corpus",
    "Document": "documents",
    "Documents": "documents",
    "Message": "documents",
    "PackedBatches": "packing",
    "Reject": "documents",
    "SourceFile": "sources",
    "TokenShards": "shards",
    "build_corpus": "corpus",
    "find_sources": "sources",
    "read_documents": "readers",
    "standard_library_sources": "sources",
    "write_shards": "tokenise",
}
__all__ = [
    "Batch",
    "Corpus",
    "CorpusReport",
    "Document",
    "Documents",
    "Message",
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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.data' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(f"leyden.data.{home}"), name)
