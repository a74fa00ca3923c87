"""Scores of a whole corpus, for stages that cut at a quantile: made once a shard, kept in files, looked up by id."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np

from leyden.core.files import atomic_file
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
    parts = [_load(_place(corpus.work, name))[1] for name in sorted(corpus.shards)]
    scores = np.sort(np.concatenate([np.empty(0), *parts]))
    return scores[~np.isnan(scores)]


def kept_scores(work: Path, shard: str, ids: Sequence[str]) -> np.ndarray:
    """[D] float64, the scores of documents of a shard, as :func:`score_corpus` found them."""
    path = _place(work, shard)
    by_id = _by_id(path, path.stat().st_mtime_ns)
    return np.array([by_id[id_] for id_ in ids], np.float64)


def _score_shard(item: tuple[str, Path], score: Score, work: Path) -> list[Path]:
    name, documents = item
    path = _place(work, name)
    ids: list[str] = []
    scores = [np.empty(0)]
    for batch in read_batches(documents):
        ids += batch.column("id")
        scores.append(score(batch))
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, ids=np.array(ids, np.str_), scores=np.concatenate(scores))
    return [path]


def _place(work: Path, shard: str, suffix: str = "npz") -> Path:
    return work / "scores" / f"{quote(shard, safe='')}.{suffix}"


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["ids"], file["scores"]


@functools.lru_cache(maxsize=2)
def _by_id(path: Path, changed_ns: int) -> dict[str, float]:
    ids, scores = _load(path)
    return dict(zip(ids.tolist(), scores.tolist(), strict=True))
