"""Exact duplicates: documents whose texts are equal, in every character or in all but case and white space."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from leyden.data.dedup.clusters import connect, survivors
from leyden.data.dedup.gathering import document_files, earlier, gather
from leyden.data.dedup.normalisation import folded, texts_of
from leyden.data.dedup.verdicts import drop_duplicates, write_verdicts
from leyden.data.documents import Documents
from leyden.data.stage import Corpus, Stage

Normalisation = Literal["none", "words"]
"""What of a text counts: every byte (``none``); or its words as white space parts them, with every mark, sign and digit
in them, in any case (``words``)."""
ASIDE: dict[Normalisation, str] = {"none": "", "words": ", case and white space aside"}
"""What the reason that copies leave with says of it."""


class Exact(Stage):
    """Keep one of the documents of equal text.

    What is equal is said by ``normalise``: two texts that differ in more than case and white space never are. The
    longest survives, then the one whose exact text, then whose identity (id, address, metadata), has the greatest hash:
    the same whatever the order and the borders of shards. Empty texts are equal to each other.
    Equality is by a 128-bit hash: two of 10^12 different texts are taken for equal with probability 10^-15.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["exact"] = "exact"
    normalise: Normalisation = "words"
    """``none``: every byte counts. ``words``: texts are equal if they differ at most in case (by Unicode's lower-case
    mapping) and in the kind and amount of white space between words and at the ends; every letter, accent, digit, mark
    and sign counts, and so does whether there is white space at all."""
    memory_bytes: int = Field(1 << 30, ge=1 << 16)
    """What one process may use for a partition of hashes; beside it there are 5 bytes a document (``clusters.py``)."""
    against: tuple[Path, ...] = ()
    """Earlier crawls, whose documents survive: ``signatures/`` of this stage's work, or builds, or Parquet files."""

    def files(self) -> tuple[Path, ...]:
        """Those of earlier crawls."""
        return files_against(self.against)

    def prepare(self, corpus: Corpus) -> None:
        """Hash every text, bring equal hashes together by partitions, choose survivors."""
        settings = {"kind": self.kind, "normalise": self.normalise, "version": self.VERSION}
        shards = gather(corpus, corpus.work / "signatures", self.buckets, settings)
        shards += earlier(corpus, self.against, self.buckets, settings)
        members, clusters = connect(corpus, shards, self.memory_bytes)
        write_verdicts(corpus.engine, corpus.work, shards, members, survivors(shards, members, clusters))

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what another document stands for."""
        return drop_duplicates(documents, shard, work, f"exact duplicate{ASIDE[self.normalise]}")

    def buckets(self, documents: Documents) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each document's one bucket: the two halves of its hash, and its row."""
        high, low = hash_texts(texts_of(documents), self.normalise)
        return high, low, np.arange(len(documents))

    def report(self, work: Path) -> dict[str, Any]:
        """Clusters and their sizes."""
        from leyden.data.dedup.evidence import cluster_sizes

        return cluster_sizes(work)


def hash_texts(texts: pa.Array, normalise: Normalisation) -> tuple[np.ndarray, np.ndarray]:
    """Two [D] uint64, the halves of the 128-bit xxHash (XXH3) of each text."""
    given = folded(texts) if normalise == "words" else texts
    digests = b"".join(xxhash.xxh3_128_digest(text) for text in given.cast(pa.large_binary()).to_pylist())
    halves = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])


def files_against(against: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files of earlier crawls that decide what a build comes to."""
    found: list[Path] = []
    for path in against:
        signatures = sorted(path.glob("*.npy")) if (path / "settings.json").is_file() else None
        found += document_files(path) if signatures is None else [path / "settings.json", *signatures]
    return tuple(found)
