"""Clusters looked at again by exact similarity, since LSH joins some pairs that are not alike, and chains of pairs.

Within a cluster, documents are taken by rank, the greatest first: one that is like none taken before survives; one that
is like some is stood for by the most similar of the survivors that were taken before it. So every dropped document has
a survivor that it is truly like, and the outcome depends on nothing but the cluster's documents. A cluster takes time
in proportion to its members times its survivors; two sets of shingles are in memory at a time.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from leyden.data.dedup.clusters import offsets_of
from leyden.data.dedup.gathering import RANK, Gathered
from leyden.data.dedup.normalisation import normalised, texts_of
from leyden.data.dedup.runs import file_name, load_array, mark_of, save_array
from leyden.data.dedup.windows import jaccard, shingle_sets
from leyden.data.marks import map_missing
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus

_MEMBERS_AT_ONCE = 20_000


def verify(
    corpus: Corpus,
    shards: Sequence[Gathered],
    members: np.ndarray,
    clusters: np.ndarray,
    *,
    shingle_words: int,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What stands for each member of the clusters once they are verified.

    Args:
        corpus: the documents of the build.
        shards: the notes on all documents.
        members: [M] int64, numbers of documents, sorted.
        clusters: [M] int64, the cluster of each.
        shingle_words: words in a shingle.
        threshold: the least Jaccard similarity of near-duplicates.

    Returns:
        [M] int64, the number of the document that stands for each; [M] float32, their similarity, NaN for survivors.
    """
    directory = corpus.scratch / "verified"
    save_array(directory / "members.npy", members)
    offsets = offsets_of(shards)
    shingle = functools.partial(_shingles_of_shard, directory, offsets, shingle_words)
    items = [(mark_of(directory / str(index)), (index, shard)) for index, shard in enumerate(shards)]
    map_missing(corpus.engine, shingle, items, "shingles of candidates")
    order = np.argsort(clusters, kind="stable")
    save_array(directory / "order.npy", order)
    save_array(directory / "clusters.npy", clusters[order])
    judge = functools.partial(_judge, directory, offsets, list(shards), threshold)
    pieces = list(_whole_clusters(clusters[order]))
    judged = [directory / f"judged-{file_name(str(begin))}.npy" for begin, _ in pieces]
    items = [(mark_of(path), (path, piece)) for path, piece in zip(judged, pieces, strict=True)]
    map_missing(corpus.engine, judge, items, "verifying clusters")
    standing, similar = np.array(members), np.full(len(members), np.nan, np.float32)
    for (begin, end), path in zip(pieces, judged, strict=True):
        found = load_array(path)
        standing[order[begin:end]], similar[order[begin:end]] = found["standing"], found["jaccard"]
    return standing, similar


def _shingles_of_shard(
    directory: Path, offsets: np.ndarray, shingle_words: int, item: tuple[int, Gathered]
) -> list[Path]:
    """The shingle sets of a shard's members, one after the other."""
    index, shard = item
    members = load_array(directory / "members.npy")
    begin, end = np.searchsorted(members, offsets[index : index + 2])
    wanted = np.array(members[begin:end]) - offsets[index]
    sets, starts, row = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)], 0
    assert shard.documents is not None
    for documents in read_batches(shard.documents):
        inside = wanted[(wanted >= row) & (wanted < row + len(documents))] - row
        row += len(documents)
        if len(inside):
            texts = normalised(texts_of(documents).take(inside))
            hashes, borders = shingle_sets(texts, shingle_words)
            sets.append(hashes)
            starts.append(borders[1:] + starts[-1][-1])
    found = {"shingles": np.concatenate(sets), "starts": np.concatenate(starts)}
    return [save_array(directory / f"{index}.{name}.npy", array) for name, array in found.items()]


def _judge(
    directory: Path,
    offsets: np.ndarray,
    shards: list[Gathered],
    threshold: float,
    item: tuple[Path, tuple[int, int]],
) -> list[Path]:
    path, (begin, end) = item
    order, all_members = load_array(directory / "order.npy"), load_array(directory / "members.npy")
    clusters = np.array(load_array(directory / "clusters.npy")[begin:end])
    members = np.array(all_members[order[begin:end]])
    result = np.zeros(end - begin, [("standing", "<i8"), ("jaccard", "<f4")])
    places = np.searchsorted(offsets, members, side="right") - 1
    first = np.searchsorted(all_members, offsets)
    sets = _Sets(directory, order[begin:end] - first[places], places)
    ranks = np.zeros(len(members), RANK)
    for place in np.unique(places):
        here = places == place
        ranks[here] = shards[place].ranks()[members[here] - offsets[place]]
    is_earlier = np.array([shard.earlier for shard in shards])[places]
    ranked = np.lexsort((ranks["identity"], ranks["text"], ranks["bytes"], is_earlier))[::-1]
    ranked = ranked[np.argsort(clusters[ranked], kind="stable")]
    borders = np.flatnonzero(np.diff(clusters[ranked], prepend=-1, append=-1))
    for low, high in zip(borders, borders[1:], strict=False):
        for index, survivor, similar in elect(ranked[low:high].tolist(), sets, threshold, is_earlier):
            result[index] = members[survivor], similar
    return [save_array(path, result)]


def elect(
    ranked: Iterable[int], sets: "_Sets | Sequence[np.ndarray]", threshold: float, always: np.ndarray
) -> Iterator[tuple[int, int, float]]:
    """What stands for each member of one cluster.

    Args:
        ranked: the members, the one of greatest rank first.
        sets: the shingle set of each.
        threshold: the least Jaccard similarity of near-duplicates.
        always: [M] bool, members that survive whatever they are like.

    Yields:
        Each member, the survivor that stands for it, and their similarity, NaN for a survivor.
    """
    survivors: list[int] = []
    for member in ranked:
        near = [] if always[member] else [jaccard(sets[survivor], sets[member]) for survivor in survivors]
        if near and max(near) >= threshold:
            yield member, survivors[int(np.argmax(near))], max(near)
        else:
            survivors.append(member)
            yield member, member, np.nan


class _Sets:
    """The shingle set of each of some members, read when it is asked for.

    Args:
        directory: of the shards' sets.
        rows: [M] int64, which of its shard's members each is.
        places: [M] int64, the shard of each.
    """

    def __init__(self, directory: Path, rows: np.ndarray, places: np.ndarray) -> None:
        self._rows, self._places = rows, places
        shards = np.unique(places).tolist()
        self._hashes = {shard: load_array(directory / f"{shard}.shingles.npy") for shard in shards}
        self._starts = {shard: load_array(directory / f"{shard}.starts.npy") for shard in shards}

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = int(self._places[index]), int(self._rows[index])
        starts = self._starts[shard]
        return np.asarray(self._hashes[shard][starts[row] : starts[row + 1]])


def _whole_clusters(clusters: np.ndarray) -> Iterator[tuple[int, int]]:
    """Spans of the sorted ``clusters`` of about equal length that part none of them."""
    begin = 0
    while begin < len(clusters):
        last = clusters[min(begin + _MEMBERS_AT_ONCE, len(clusters)) - 1]
        end = int(np.searchsorted(clusters, last, side="right"))
        yield begin, end
        begin = end
