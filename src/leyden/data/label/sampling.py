"""A sample of a corpus by content: a text is in it or not, whatever the shards, and a smaller sample is in a larger."""

from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import xxhash

from leyden.core.files import atomic_file
from leyden.data.arrays import write_array
from leyden.data.documents import Documents
from leyden.data.marks import map_missing
from leyden.data.parquet import DocumentsWriter, read_batches
from leyden.data.stage import Corpus


def draws(texts: list[str], salt: str) -> np.ndarray:
    """[D] float64 in [0, 1), uniform, by a hash of each text; another ``salt`` gives other, independent numbers."""
    seed = xxhash.xxh3_64_intdigest(salt.encode())
    hashes = np.array([xxhash.xxh3_64_intdigest(text.encode(), seed) for text in texts], np.uint64)
    return (hashes >> np.uint64(11)).astype(np.float64) / 2**53


def sample_corpus(corpus: Corpus, size: int, salt: str) -> tuple[list[str], list[str]]:
    """The ``size`` documents that draw least; of equal texts one.

    Every shard's share is kept in ``corpus.work/sample`` and is not made again.

    Returns:
        [S] ids and [S] texts, in the order of their draws.
    """
    folder = corpus.work / "sample"
    items = sorted(corpus.shards.items())
    marked = [(_place(folder, name, "least"), (name, path)) for name, path in items]
    map_missing(corpus.engine, partial(_least, folder=folder, size=size, salt=salt), marked, "drawing a sample")
    drawn = np.sort(np.concatenate([np.empty(0), *(np.load(_place(folder, name, "npy")) for name, _ in items)]))
    cut = float(drawn[size - 1]) if len(drawn) >= size else 1.0
    marked = [(_place(folder, name, "collected"), (name, path)) for name, path in items]
    map_missing(corpus.engine, partial(_collect, folder=folder, cut=cut, salt=salt), marked, "reading the sample")
    found: dict[str, str] = {}
    for name, _ in items:
        for batch in read_batches(_place(folder, name, "parquet")):
            for text, id_ in zip(batch.texts(), batch.column("id"), strict=True):
                found[text] = min(id_, found.get(text, id_))
    texts = list(found)
    order = np.argsort(draws(texts, salt), kind="stable")
    return [found[texts[i]] for i in order], [texts[i] for i in order]


def _place(folder: Path, shard: str, suffix: str) -> Path:
    return folder / f"{quote(shard, safe='')}.{suffix}"


def _least(item: tuple[str, Path], folder: Path, size: int, salt: str) -> list[Path]:
    """The least draws of a shard's different texts, at most ``size``."""
    name, documents = item
    path = _place(folder, name, "npy")
    parts = [np.unique(draws(batch.texts(), salt))[:size] for batch in read_batches(documents)]
    found = np.unique(np.concatenate([np.empty(0), *parts]))[:size]
    with atomic_file(path) as part:
        write_array(part, found)
    return [path]


def _collect(item: tuple[str, Path], folder: Path, cut: float, salt: str) -> list[Path]:
    """The documents of a shard that draw no more than ``cut``."""
    name, documents = item
    path = _place(folder, name, "parquet")
    with DocumentsWriter(path) as file:
        for batch in read_batches(documents):
            file.write(Documents(batch.table.filter(draws(batch.texts(), salt) <= cut)))
    return [path]
