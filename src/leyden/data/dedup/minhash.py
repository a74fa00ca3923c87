"""Near-duplicates by MinHash and locality-sensitive hashing.

Signatures are made shard by shard; the hashes of their bands are sorted runs on disk, which meet partition by
partition within a memory budget; documents that share a band are joined to clusters, and one of each survives.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from leyden.core.errors import UserError
from leyden.data.dedup.clusters import connect, survivors
from leyden.data.dedup.evidence import cluster_sizes, gather_evidence, read_evidence
from leyden.data.dedup.exact import files_against
from leyden.data.dedup.gathering import Gathered, earlier, gather
from leyden.data.dedup.lsh import band_hashes, choose_bands, collision_probability, signatures
from leyden.data.dedup.normalisation import normalised, texts_of
from leyden.data.dedup.verdicts import drop_duplicates, write_verdicts
from leyden.data.dedup.verification import verify
from leyden.data.documents import Documents, pc
from leyden.data.stage import Corpus, Stage

if TYPE_CHECKING:  # matplotlib is for reports alone
    from leyden.core.page import Plot

_PROBE = "the quick brown fox jumps over the lazy dog and runs away"


class MinHash(Stage):
    """Keep one of the documents of each cluster of near-duplicates.

    Texts are compared by their words: punctuation parts words and does not count, symbols, operators and the marks
    inside numbers do (:func:`leyden.data.dedup.normalisation.normalised`); a character is a word in scripts without
    spaces. A document without a word is compared with none. The survivor is the longest, then the one whose exact text,
    then whose identity (id, address, metadata), has the greatest hash, whatever the order and the borders of shards.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["minhash"] = "minhash"
    bands: int | None = Field(None, ge=1, le=1024)
    """Bands of a signature; with ``rows``, not with ``threshold``. 14 where nothing is said (FineWeb, section 3.4)."""
    rows: int | None = Field(None, ge=1, le=256)
    """Hashes in a band. 8 where nothing is said (FineWeb): pairs of similarity 0.72 meet half of the time."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """The similarity from which pairs should meet: bands and rows are then chosen (``choose_bands``)."""
    num_hashes: int | None = Field(None, ge=1, le=4096)
    """Of a signature, at most; with ``threshold``. 112 where nothing is said (FineWeb)."""
    shingle_words: int = Field(5, ge=1)
    """Consecutive words that make a shingle (FineWeb: 5)."""
    seed: int = Field(1, ge=0, lt=2**32)
    """Of the permutations."""
    verify: bool = False
    """Drop a document only if its exact similarity with a survivor is at least the threshold (without one, the
    similarity that meets half of the time). A cluster can then keep several."""
    memory_bytes: int = Field(1 << 30, ge=1 << 16)
    """What one process may use for a partition of bands; beside it there are 5 bytes a document (``clusters.py``)."""
    against: tuple[Path, ...] = ()
    """Earlier crawls, whose documents survive: ``signatures/`` of this stage's work, or builds, or Parquet files."""
    evidence_documents: int = Field(2000, ge=0)
    """How many documents the report's measurements are made on; 0 for none."""
    evidence_seeds: int = Field(4, ge=2)
    """Seeds that the removed set is compared under, on those documents."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.bands is None) != (self.rows is None):
            raise ValueError("bands and rows go together: give both, or a threshold")
        if self.bands is not None and self.threshold is not None:
            raise ValueError("give either bands and rows, or a threshold")
        if self.num_hashes is not None and self.threshold is None:
            raise ValueError("num_hashes goes with threshold; with bands and rows it is their product")
        return self

    def curve(self) -> tuple[int, int]:
        """Bands and rows."""
        if self.threshold is not None:
            return choose_bands(self.threshold, self.num_hashes or 112)
        return self.bands or 14, self.rows or 8

    def similarity(self) -> float:
        """The similarity from which documents are near-duplicates when verified."""
        bands, rows = self.curve()
        return self.threshold if self.threshold is not None else (1.0 - 0.5 ** (1.0 / bands)) ** (1.0 / rows)

    def files(self) -> tuple[Path, ...]:
        """Those of earlier crawls."""
        return files_against(self.against)

    def prepare(self, corpus: Corpus) -> None:
        """Sign every text, join those that share a band, choose survivors, measure."""
        shards = gather(corpus, corpus.work / "signatures", self.buckets, self._settings())
        shards += earlier(corpus, self.against, self.buckets, self._settings())
        members, clusters = connect(corpus, shards, self.memory_bytes)
        if self.verify:
            _refuse_without_texts(shards)
            standing, jaccard = verify(
                corpus, shards, members, clusters, shingle_words=self.shingle_words, threshold=self.similarity()
            )
            write_verdicts(corpus.engine, corpus.work, shards, members, standing, jaccard)
        else:
            write_verdicts(corpus.engine, corpus.work, shards, members, survivors(shards, members, clusters))
        if self.evidence_documents:
            gather_evidence(
                corpus,
                curve=self.curve(),
                threshold=self.similarity() if self.verify else None,
                shingle_words=self.shingle_words,
                seed=self.seed,
                num_seeds=self.evidence_seeds,
                num_documents=self.evidence_documents,
            )

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what another document stands for."""
        return drop_duplicates(documents, shard, work, "near-duplicate")

    def buckets(self, documents: Documents) -> tuple[np.ndarray, None, np.ndarray]:
        """The hashes of each document's bands, and its row; nothing of documents without words."""
        texts = normalised(texts_of(documents))
        rows = np.flatnonzero(pc.greater(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False))
        bands, height = self.curve()
        signature = signatures(texts.take(rows), bands * height, self.shingle_words, self.seed)
        return band_hashes(signature, bands, height).ravel(), None, np.repeat(rows, bands)

    def report(self, work: Path) -> dict[str, Any]:
        """Bands and rows, clusters, the curve in theory and measured, pairs, and how the seed moves the removed set."""
        bands, rows = self.curve()
        return {"bands": bands, "rows": rows, **cluster_sizes(work), **read_evidence(work)}

    def plots(self, work: Path) -> "list[Plot]":
        """The S-curve, as it should be and as it was measured."""
        from leyden.core.page import ACCENT, MUTED, Plot, drawing

        measured = read_evidence(work).get("curve", [])
        if not measured:
            return []
        similarity, (bands, rows) = np.linspace(0, 1, 200), self.curve()
        with drawing("near-duplicates") as drawn:
            drawn.axes.plot(similarity, collision_probability(similarity, bands, rows), color=MUTED)
            drawn.axes.plot([b["similarity"] for b in measured], [b["measured"] for b in measured], "o", color=ACCENT)
            drawn.axes.set_xlabel("Jaccard similarity")
            drawn.axes.set_ylabel("share that meets")
        caption = f"{bands} bands of {rows}: the theory's curve, and sampled texts beside edited copies (points)"
        return [Plot("Near-duplicates that meet, by similarity", drawn.svg, caption)]

    def _settings(self) -> dict[str, Any]:
        """What band hashes depend on; the probe tells a version of the library that draws other permutations."""
        bands, rows = self.curve()
        probe = signatures(pa.array([_PROBE], pa.large_string()), bands * rows, self.shingle_words, self.seed)
        return {
            "kind": self.kind,
            "version": self.VERSION,
            "bands": bands,
            "rows": rows,
            "shingle_words": self.shingle_words,
            "seed": self.seed,
            "signature of a probe": int(np.bitwise_xor.reduce(band_hashes(probe, bands, rows).ravel())),
        }


def _refuse_without_texts(shards: list[Gathered]) -> None:
    for shard in shards:
        if shard.documents is None:
            raise UserError(
                f"verify = true needs the texts of earlier documents, and {shard.directory} holds signatures alone; "
                "give the earlier build itself in against, or set verify = false."
            )
