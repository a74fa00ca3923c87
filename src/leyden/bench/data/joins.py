"""Deduplication's join, by our sorted runs on disk and by Daft's group-by and join, on the same records.

``python -m leyden.bench.data.joins --how runs|daft --documents N --dir DIR`` prints a line of JSON. The records are
those of MinHash with 14 bands: a quarter of the documents are exact copies (all bands), one in twenty is a near copy
(five bands), as in the planted corpus (docs/data.md). Both go from arrays in memory, through files, to clusters.
"""

import argparse
import json
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from leyden.data.dedup.clusters import Forest, connect
from leyden.data.dedup.gathering import RANK, Gathered, note_buckets
from leyden.data.dedup.runs import mark_of, save_array
from leyden.data.engine import DataEngine, daft
from leyden.data.marks import write_mark
from leyden.data.stage import Corpus

BANDS = 14
_NEAR_BANDS = 5
_SHARD_DOCUMENTS = 8192
_MEMORY_BYTES = 256 << 20


def records(documents: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first document of each shard, and its documents' keys: [D, BANDS] uint64."""
    generator = np.random.default_rng(0)
    seeds = np.arange(documents, dtype=np.uint64)
    kind = generator.random(documents)
    copied = generator.integers(0, documents, documents).astype(np.uint64)
    for first in range(0, documents, _SHARD_DOCUMENTS):
        these = slice(first, min(first + _SHARD_DOCUMENTS, documents))
        own, other, of_kind = seeds[these, None], copied[these, None], kind[these, None]
        shared = np.where(of_kind < 0.25, BANDS, np.where(of_kind < 0.3, _NEAR_BANDS, 0))
        bands = np.arange(BANDS, dtype=np.uint64)
        yield first, _hash(np.where(bands < shared, other, own) * np.uint64(BANDS) + bands)


def by_runs(documents: int, directory: Path, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Members and clusters, by :mod:`leyden.data.dedup.runs` and :mod:`leyden.data.dedup.clusters`."""
    shards = []
    for first, keys in records(documents):
        shard = Gathered(directory / "notes", f"{first:012d}", None)
        save_array(shard["ranks.npy"], np.zeros(len(keys), RANK))
        files = note_buckets(shard, keys.ravel(), None, np.repeat(np.arange(len(keys)), BANDS))
        write_mark(mark_of(shard.run), files)
        shards.append(shard)
    return connect(Corpus({}, directory / "work", DataEngine(workers)), shards, _MEMORY_BYTES)


def by_daft(documents: int, directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Members and clusters, by Daft's group-by, join and distinct; the clusters themselves by the same forest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    for first, keys in records(documents):
        numbers = np.repeat(np.arange(first, first + len(keys)), BANDS)
        pq.write_table(pa.table({"key": keys.ravel(), "document": numbers}), directory / f"{first:012d}.parquet")
    frame = daft.read_parquet(f"{directory}/*.parquet")
    number = daft.col("document")
    heads = frame.groupby("key").agg(number.min().alias("head"), number.count().alias("count"))
    edges = frame.join(heads.where(daft.col("count").between(2, documents)), on="key").where(number != daft.col("head"))
    forest = Forest(documents)
    for batch in edges.select("head", "document").distinct().to_arrow_iter():
        forest.join(np.stack([batch.column(name).to_numpy() for name in ("head", "document")], axis=1))
    members = forest.joined()
    _, clusters = np.unique(forest.roots(members), return_inverse=True)
    return members, clusters.astype(np.int64)


def _hash(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def main() -> None:
    """Measure one way once, in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", choices=("runs", "daft"), required=True)
    parser.add_argument("--documents", type=int, default=75_082)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dir", type=Path, required=True)
    given = parser.parse_args()
    shutil.rmtree(given.dir, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    if given.how == "runs":
        members, clusters = by_runs(given.documents, given.dir, given.workers)
    else:
        members, clusters = by_daft(given.documents, given.dir)
    seconds = time.perf_counter() - started
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {
        "how": given.how,
        "workers": given.workers,
        "documents": given.documents,
        "members": len(members),
        "clusters": int(clusters.max()) + 1 if len(clusters) else 0,
        "seconds": round(seconds, 2),
        "processor_seconds": round(sum(part.ru_utime + part.ru_stime for part in (own, children)), 2),
        "peak_mib": round(own.ru_maxrss / 1024),
        "peak_above_start_mib": round(own.ru_maxrss / 1024 - before),
        "worker_peak_mib": round(children.ru_maxrss / 1024),
    }
    print(json.dumps(found), flush=True)
    shutil.rmtree(given.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
