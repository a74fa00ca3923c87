"""Documents to packed batches: reading, cleaning, deduplication, labels, mixtures, token shards, and exact resume.

Names resolve lazily (PEP 562): processes that only handle documents need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leyden.data.documents import Document as Document
    from leyden.data.documents import Documents as Documents
    from leyden.data.documents import Message as Message
    from leyden.data.documents import Reject as Reject
    from leyden.data.in_memory import shards_in_memory as shards_in_memory
    from leyden.data.loader.grouped import GroupedBatches as GroupedBatches
    from leyden.data.loader.grouped import GroupedDocuments as GroupedDocuments
    from leyden.data.loader.mixed import MixedBatches as MixedBatches
    from leyden.data.loader.mixture_schedule import MixtureSchedule as MixtureSchedule
    from leyden.data.loader.packing import Batch as Batch
    from leyden.data.loader.packing import PackedBatches as PackedBatches
    from leyden.data.loader.prefetch import Prefetched as Prefetched
    from leyden.data.readers import read_documents as read_documents
    from leyden.data.shards import TokenShards as TokenShards
    from leyden.data.sources import SourceFile as SourceFile
    from leyden.data.sources import find_sources as find_sources
    from leyden.data.sources import standard_library_sources as standard_library_sources
    from leyden.data.token_files import open_token_files as open_token_files
    from leyden.data.tokenise import tokenise_files as tokenise_files
    from leyden.data.tokenise import write_shards as write_shards

_HOMES = {
    "Batch": "loader.packing",
    "Document": "documents",
    "Documents": "documents",
    "GroupedBatches": "loader.grouped",
    "GroupedDocuments": "loader.grouped",
    "Message": "documents",
    "MixedBatches": "loader.mixed",
    "MixtureSchedule": "loader.mixture_schedule",
    "PackedBatches": "loader.packing",
    "Prefetched": "loader.prefetch",
    "Reject": "documents",
    "SourceFile": "sources",
    "TokenShards": "shards",
    "find_sources": "sources",
    "open_token_files": "token_files",
    "read_documents": "readers",
    "shards_in_memory": "in_memory",
    "standard_library_sources": "sources",
    "tokenise_files": "tokenise",
    "write_shards": "tokenise",
}
__all__ = [
    "Batch",
    "Document",
    "Documents",
    "GroupedBatches",
    "GroupedDocuments",
    "Message",
    "MixedBatches",
    "MixtureSchedule",
    "PackedBatches",
    "Prefetched",
    "Reject",
    "SourceFile",
    "TokenShards",
    "find_sources",
    "open_token_files",
    "read_documents",
    "shards_in_memory",
    "standard_library_sources",
    "tokenise_files",
    "write_shards",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'leyden.data' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(f"leyden.data.{home}"), name)
