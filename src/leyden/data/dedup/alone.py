"""One deduplication stage outside a build, for benchmarks and notebooks."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from leyden.core.files import discard
from leyden.data.documents import Documents
from leyden.data.engine import DataEngine
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus, Stage


def run_alone(stage: Stage, shards: Mapping[str, Path], work: Path, *, workers: int = 1) -> Iterator[Documents]:
    """Prepare a stage on a corpus, then apply it; every batch with its reasons, texts and scores.

    Args:
        stage: any.
        shards: the name of each shard, and its Parquet file of documents.
        work: a directory for what the stage learns; one that an interrupted run left is gone on with.
        workers: processes that prepare; it is applied in this one.
    """
    corpus = Corpus(shards, work, DataEngine(workers))
    stage.prepare(corpus)
    discard(corpus.scratch)
    for shard, path in shards.items():
        for documents in read_batches(path):
            yield stage.apply(documents, shard, work)
