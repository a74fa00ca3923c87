"""Stored scores of a whole corpus, for stages that cut at a quantile: computed once a shard, looked up by row."""

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np

from leyden.core.files import atomic_file
from leyden.data.arrays import write_array
from leyden.data.documents import Documents
from leyden.data.marks import map_missing
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus

Score = Callable[[Documents], np.ndarray]
"""[D] float64 for a batch, NaN for documents that it says nothing of; picklable."""


def score_corpus(corpus: Corpus, score: Score, title: str) -> np.ndarray:
    """Score every document; every shard's scores are kept in ``corpus.work/scores`` and are not made again.

    Returns:
        [D] float64, sorted, without those that are NaN; 8 bytes a document.
    """
    items = [(_place(corpus.work, name, "done"), (name, path)) for name, path in sorted(corpus.shards.items())]
    map_missing(corpus.engine, partial(_score_shard, score=score, work=corpus.work), items, title)
    parts = [np.load(_place(corpus.work, name)) for name in sorted(corpus.shards)]
    scores = np.sort(np.concatenate([np.empty(0), *parts]))
    return scores[~np.isnan(scores)]


def kept_scores(work: Path, shard: str, documents: Documents) -> np.ndarray:
    """[D] float64, the scores of a batch of a shard, as :func:`score_corpus` found them."""
    path = _place(work, shard)
    return _load(path, path.stat().st_mtime_ns)[documents.rows()]


def _score_shard(item: tuple[str, Path], score: Score, work: Path) -> list[Path]:
    name, documents = item
    path = _place(work, name)
    scores = [np.empty(0), *(score(batch) for batch in read_batches(documents))]
    with atomic_file(path) as part:
        write_array(part, np.concatenate(scores))
    return [path]


def _place(work: Path, shard: str, suffix: str = "npy") -> Path:
    return work / "scores" / f"{quote(shard, safe='')}.{suffix}"


@functools.lru_cache(maxsize=2)
def _load(path: Path, changed_ns: int) -> np.ndarray:
    """[D] float64, the scores of a shard; ``changed_ns`` tells a new file from an old one."""
    return np.load(path)
