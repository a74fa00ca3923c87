"""Exact duplicates with a Bloom filter: 1.8 bytes a document at a false-positive rate of 0.1 %, and a filter to keep.

A filter alone keeps the first of equal texts, in whatever order they come, and drops some that it has not seen. Here it
only finds candidates: a text that it may have seen. Copies always are candidates, and these few are then compared by
their 128-bit hashes, so within a build the outcome is that of :class:`Exact`, whatever the order. Against the filter of
an earlier crawl, which is fixed, a new text is dropped wrongly at the rate asked, the same texts in any order.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import xxhash
from pydantic import Field
from rbloom import Bloom as Filter

from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.data.dedup.clusters import connect, survivors
from leyden.data.dedup.evidence import cluster_sizes
from leyden.data.dedup.exact import ASIDE, Normalisation, hash_texts
from leyden.data.dedup.gathering import Gathered, note_buckets, note_files, rank
from leyden.data.dedup.normalisation import texts_of
from leyden.data.dedup.runs import load_array, save_array
from leyden.data.dedup.verdicts import drop_duplicates, write_verdicts
from leyden.data.documents import Documents
from leyden.data.marks import map_missing
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus, Stage


class Bloom(Stage):
    """Keep one of the documents of equal text, and none that an earlier crawl's filter holds.

    Survivors within the build are those of :class:`Exact`. The filter of everything seen so far is left in
    ``filter/`` of the stage's work, for the next crawl's ``against``. Texts are read once. On disk there are 40 bytes a
    document and its id; in memory the filter (``-ln(rate) / ln(2)^2`` bits a document), and 100 bytes a candidate.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["bloom"] = "bloom"
    normalise: Normalisation = "words"
    """As of :class:`Exact`: ``none``: every byte counts; ``words``: case and the kind and amount of white space do not,
    every mark, sign and digit does."""
    false_positive_rate: float = Field(1e-3, gt=0, lt=0.5)
    """Share of new texts that a filter holding ``expected_documents`` takes for seen."""
    expected_documents: int | None = Field(None, ge=1)
    """How many different texts the filter is made for, those of later crawls among them. None: this build's."""
    memory_bytes: int = Field(1 << 30, ge=1 << 16)
    """What one process may use for a partition of candidates, beside the filter."""
    against: Path | None = None
    """``filter/`` of an earlier build: it is grown on, in its size, and refused once it is so full that its
    false-positive rate is twice what is asked."""

    def files(self) -> tuple[Path, ...]:
        """The earlier filter.

        Raises:
            UserError: there is none, or it cannot be used.
        """
        if self.against is None:
            return ()
        load_filter(self.against, self.normalise, self.false_positive_rate)
        return self.against / "filter.bloom", self.against / "settings.json"

    def prepare(self, corpus: Corpus) -> None:
        """Hash every text, pass the hashes through the filter, compare candidates exactly."""
        directory = corpus.work / "signatures"
        shards = [Gathered(directory, name, path) for name, path in corpus.shards.items()]
        hashing = functools.partial(_hash_shard, self.normalise)
        map_missing(corpus.engine, hashing, [(shard.done, shard) for shard in shards], "hashing documents")
        candidates = self._pass(corpus, shards)
        save_array(corpus.work / "candidates.npy", candidates)
        bucketing = functools.partial(_bucket_candidates, corpus.work / "candidates.npy")
        for _ in corpus.engine.map(bucketing, shards):
            pass
        members, clusters = connect(corpus, shards, self.memory_bytes)
        write_verdicts(corpus.engine, corpus.work, shards, members, survivors(shards, members, clusters))

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop what was seen before, and what another document stands for."""
        before = load_array(Gathered(work / "signatures", shard, None)["before.npy"])
        aside = ASIDE[self.normalise]
        reason = f"exact duplicate of an earlier crawl{aside}"
        marked = documents.drop([reason if yes else None for yes in before[documents.rows()].tolist()])
        return drop_duplicates(marked, shard, work, f"exact duplicate{aside}")

    def report(self, work: Path) -> dict[str, Any]:
        """Clusters, and the filter: its size, how full it is, and the false-positive rate that it has so."""
        return {**cluster_sizes(work), "filter": json.loads((work / "filter" / "settings.json").read_text())}

    def _pass(self, corpus: Corpus, shards: list[Gathered]) -> np.ndarray:
        """Write the filter of everything, and which documents of each shard an earlier crawl had.

        Returns:
            [C, 2] uint64, hashes that the filter held already when they came, sorted.
        """
        earlier = None if self.against is None else load_filter(self.against, self.normalise, self.false_positive_rate)
        if earlier is None:
            count = self.expected_documents or sum(len(load_array(shard["hashes.npy"])) for shard in shards)
            growing = Filter(max(count, 1), self.false_positive_rate, _itself)
        else:
            growing = earlier.copy()
        candidates: set[int] = set()
        for shard in shards:
            hashes = list(_integers(load_array(shard["hashes.npy"])))
            before = np.array([earlier is not None and value in earlier for value in hashes], bool)
            save_array(shard["before.npy"], before)
            for value, is_before in zip(hashes, before.tolist(), strict=True):
                if not is_before and value in growing:
                    candidates.add(value)
                growing.add(value)
        self._save(corpus.work / "filter", growing)
        return np.array(sorted(_halves(value) for value in candidates), np.uint64).reshape(-1, 2)

    def _save(self, directory: Path, filter_: Filter) -> None:
        with atomic_directory(directory) as part:
            filter_.save(str(part / "filter.bloom"))
            held = (part / "filter.bloom").read_bytes()
            hashes = int.from_bytes(held[:8], "little")  # rbloom's file: the number of hashes, then the bits
            ones = int.from_bytes(held[8:], "little").bit_count()
            rate = (ones / filter_.size_in_bits) ** hashes
            settings = {
                "normalise": self.normalise,
                "version": self.VERSION,
                "bytes": len(held),
                "hashes": hashes,
                "documents": round(filter_.approx_items),
                "false_positive_rate": rate,
                "digest": xxhash.xxh3_128_hexdigest(held),
            }
            (part / "settings.json").write_text(json.dumps(settings))


def load_filter(directory: Path, normalise: Normalisation, false_positive_rate: float) -> Filter:
    """The filter that an earlier build left.

    Raises:
        UserError: there is none, it is damaged, its texts were normalised in another way, or it is so full that its
            rate of false positives is more than twice what is asked.
    """
    try:
        settings = json.loads((directory / "settings.json").read_text())
        held = (directory / "filter.bloom").read_bytes()
    except OSError as error:
        raise UserError(
            f"{directory} has no filter ({error.strerror}); give filter/ of an earlier build's stage."
        ) from None
    if xxhash.xxh3_128_hexdigest(held) != settings["digest"]:
        raise UserError(f"{directory / 'filter.bloom'} is damaged: it is not what its settings.json says.")
    if settings["normalise"] != normalise:
        then = settings["normalise"]
        raise UserError(f"{directory} was made with normalise = {then!r}, this stage has {normalise!r}; give the same.")
    if settings.get("version") != Bloom.VERSION:
        raise UserError(f"{directory} was made by another version of Leyden, which compared texts in another way.")
    held_rate = settings["false_positive_rate"]
    if held_rate > 2 * false_positive_rate:
        raise UserError(
            f"{directory} holds {settings['documents']} documents and takes {held_rate:.2g} of new texts for seen, "
            f"where {false_positive_rate:.2g} is asked; start a filter with a greater expected_documents."
        )
    return Filter.load_bytes(held, _itself)


def _itself(value: int) -> int:
    """The hash of a hash, as signed 128 bits."""
    return value - (1 << 127)


def _integers(hashes: np.ndarray) -> Iterator[int]:
    for high, low in hashes.tolist():
        yield high << 64 | low


def _halves(value: int) -> tuple[int, int]:
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def _hash_shard(normalise: Normalisation, shard: Gathered) -> list[Path]:
    described, hashes = [], [np.zeros((0, 2), np.uint64)]
    assert shard.documents is not None
    for documents in read_batches(shard.documents):
        described.append((rank(documents), documents.table.column("id").combine_chunks()))
        hashes.append(np.stack(hash_texts(texts_of(documents), normalise), axis=1))
    return [*note_files(shard, described), save_array(shard["hashes.npy"], np.concatenate(hashes))]


def _bucket_candidates(path: Path, shard: Gathered) -> None:
    """Buckets of those documents alone that may have a copy in this build."""
    candidates, hashes = load_array(path), np.array(load_array(shard["hashes.npy"]))
    rows = np.flatnonzero(np.isin(hashes[:, 0], candidates[:, 0]) & ~load_array(shard["before.npy"]))
    note_buckets(shard, hashes[rows, 0], hashes[rows, 1], rows)
