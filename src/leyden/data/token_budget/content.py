"""What a mixture needs to know of each document: its category, score, bytes, and a number that its content draws.

The number is uniform in [0, 1) by a hash of the text alone. Choosing the documents below a cut is then the same choice
however a corpus is cut into shards, and a smaller choice lies within a larger one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import xxhash

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.documents import Documents
from leyden.data.marks import map_missing
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus

_SALT = 0x6C657964656E  # so that no other use of the hash draws the same numbers


@dataclass(frozen=True, eq=False)
class ContentColumns:
    """Documents, column by column.

    Attributes:
        categories: [D] of str.
        scores: [D] float64, the mean of the scores asked for; NaN where a document has none of them.
        num_bytes: [D] int64, UTF-8.
        draws: [D] float64 in [0, 1).
    """

    categories: np.ndarray
    scores: np.ndarray
    num_bytes: np.ndarray
    draws: np.ndarray

    def __len__(self) -> int:
        return len(self.draws)


def contents_of(documents: Documents, scores: Sequence[str], category_key: str | None) -> ContentColumns:
    """What a mixture needs to know of a batch.

    Args:
        scores: names in the documents' ``scores``; their mean counts, of those that a document has.
        category_key: of the category in the metadata. None, and for documents without one: the source.
    """
    values = np.stack([documents.scores(name) for name in scores]) if scores else np.empty((0, len(documents)))
    given = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(given, values, 0).sum(axis=0) / given.sum(axis=0)
    categories = documents.column("source")
    if category_key is not None:
        found = [json.loads(text).get(category_key) if text else None for text in documents.column("metadata")]
        categories = [str(own) if own is not None else source for own, source in zip(found, categories, strict=True)]
    hashes = np.array([xxhash.xxh3_64_intdigest(text.encode(), _SALT) for text in documents.texts()], np.uint64)
    draws = (hashes >> np.uint64(11)).astype(np.float64) / 2**53
    return ContentColumns(np.array(categories, np.str_), mean, documents.num_bytes(), draws)


def gather_contents(corpus: Corpus, scores: Sequence[str], category_key: str | None) -> ContentColumns:
    """What a mixture needs to know of a corpus: about 28 bytes a document in memory, beside the categories' names.

    Each shard's is kept in ``corpus.work``, and not made again.
    """
    folder = corpus.work / "contents"
    task = partial(_gather, folder=folder, scores=tuple(scores), category_key=category_key)
    items = [(_place(folder, name, "done"), (name, path)) for name, path in sorted(corpus.shards.items())]
    map_missing(corpus.engine, task, items, "reading what there is to mix")
    parts = [_load(_place(folder, name)) for name in sorted(corpus.shards)]
    if not sum(map(len, parts)):
        raise UserError("there are no documents to mix.")
    return ContentColumns(
        *(np.concatenate([getattr(part, field) for part in parts]) for field in ContentColumns.__annotations__)
    )


def cut_at(draws: np.ndarray, sizes: np.ndarray, share: float) -> float:
    """The cut below which documents make up ``share`` of all ``sizes``, to half a document at the border.

    Args:
        draws: [D].
        sizes: [D], bytes or tokens.
        share: from 0 to 1.

    Returns:
        A document is chosen if its draw is below it.
    """
    if share >= 1:
        return 1.0
    order = np.argsort(draws, kind="stable")
    # The sizes below a cut in front of each document, and behind the last.
    sums = np.concatenate([[0], np.cumsum(sizes[order])])
    chosen = int(np.argmin(np.abs(sums - share * sums[-1])))
    return float(draws[order[chosen]]) if chosen < len(draws) else 1.0


def repeats(draws: np.ndarray, epochs: float, cut: float) -> np.ndarray:
    """[D] int64, how often each document is used: ``floor(epochs)``, and once more below ``cut``."""
    return np.floor(epochs).astype(np.int64) + (draws < cut)


def _place(folder: Path, shard: str, suffix: str = "npz") -> Path:
    return folder / f"{quote(shard, safe='')}.{suffix}"


def _gather(item: tuple[str, Path], folder: Path, scores: tuple[str, ...], category_key: str | None) -> list[Path]:
    name, path = item
    place = _place(folder, name)
    parts = [contents_of(batch, scores, category_key) for batch in read_batches(path)]
    columns = {
        field: np.concatenate([getattr(part, field) for part in parts]) if parts else np.empty(0, kind)
        for field, kind in (("categories", "U1"), ("scores", "f8"), ("num_bytes", "i8"), ("draws", "f8"))
    }
    with atomic_file(place) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    return [place]


def _load(path: Path) -> ContentColumns:
    with np.load(path, allow_pickle=False) as file:
        return ContentColumns(*(file[field] for field in ContentColumns.__annotations__))
