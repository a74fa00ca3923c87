"""Deduplication and decontamination: stages that drop what a corpus has already, or must not have.

Whatever the order of documents, the borders of shards and the number of workers, the same documents survive.
"""

from leyden.data.dedup.alone import run_alone as run_alone
from leyden.data.dedup.bloom import Bloom as Bloom
from leyden.data.dedup.contamination import Contamination as Contamination
from leyden.data.dedup.exact import Exact as Exact
from leyden.data.dedup.minhash import MinHash as MinHash
from leyden.data.dedup.paragraphs import Paragraphs as Paragraphs
from leyden.data.dedup.substrings import Substrings as Substrings

__all__ = ["Bloom", "Contamination", "Exact", "MinHash", "Paragraphs", "Substrings", "run_alone"]
