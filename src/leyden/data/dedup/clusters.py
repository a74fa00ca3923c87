"""Clusters of duplicates: documents joined through shared buckets, and the one of each that survives.

Memory, beside one partition of buckets: 5 to 9 bytes for every document (the forest; 32-bit numbers below 2^31
documents), and about 60 for each that shares a bucket with another.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from leyden.data.dedup.gathering import RANK, Gathered
from leyden.data.dedup.runs import Runs, groups, load_array, mark_of, save_array
from leyden.data.marks import map_missing
from leyden.data.stage import Corpus

PARTITIONS = "partitions.npy"
"""In a stage's work, how many partitions there were."""
_EDGES_AT_ONCE = 1 << 20


class Forest:
    """Sets of numbers that grow together, as trees; a tree's root is its least number.

    Args:
        size: of the numbers 0 to ``size - 1``, each in a set of its own at first.
    """

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
        self._joined = np.zeros(size, bool)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """[N], the root of the tree that each number is in."""
        found = self._parent[numbers]
        while True:
            above = self._parent[found]
            if (above == found).all():
                self._parent[numbers] = found
                return found
            found = above

    def join(self, edges: np.ndarray) -> None:
        """Put the two numbers of each of ``edges`` [E, 2] in one set."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        self._joined[edges.ravel()] = True
        ends = np.stack([self.roots(edges[:, 0]), self.roots(edges[:, 1])], axis=1)
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return
        nodes, places = np.unique(ends, return_inverse=True)
        places = places.reshape(-1, 2)
        ones = np.ones(len(places), np.int8)
        graph = coo_matrix((ones, (places[:, 0], places[:, 1])), shape=(len(nodes), len(nodes)))
        _, labels = connected_components(graph, directed=False)
        _, least = np.unique(labels, return_index=True)  # nodes are sorted: the first of a component is its least
        self._parent[nodes] = nodes[least[labels]]

    def joined(self) -> np.ndarray:
        """[M] int64, the numbers that are in a set with another, sorted."""
        return np.flatnonzero(self._joined)


def offsets_of(shards: Sequence[Gathered]) -> np.ndarray:
    """[S+1] int64: documents are numbered through, and these are the numbers of each shard's first."""
    return np.concatenate([[0], np.cumsum([len(shard.ranks()) for shard in shards], dtype=np.int64)])


def connect(corpus: Corpus, shards: Sequence[Gathered], memory_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents that share a bucket with another, directly or through others.

    Args:
        corpus: its engine runs one task a partition; the partitions' edges are its scratch.
        shards: the notes on all documents.
        memory_bytes: of one partition.

    Returns:
        [M] int64, numbers of documents, sorted; and [M] int64, the cluster that each is in, from 0.
    """
    offsets = offsets_of(shards)
    runs = Runs(tuple(shard.run for shard in shards))
    ranges = runs.ranges(memory_bytes)
    directory = corpus.scratch / f"edges-{len(ranges)}"
    files = [directory / f"{index}.npy" for index in range(len(ranges))]
    task = functools.partial(_edges_of_partition, runs, offsets)
    items = [(mark_of(file), (file, keys)) for file, keys in zip(files, ranges, strict=True)]
    map_missing(corpus.engine, task, items, "joining partitions")
    save_array(corpus.work / PARTITIONS, np.array([len(ranges)]))
    forest = Forest(int(offsets[-1]))
    for edges in _all_edges(shards, offsets, files):
        forest.join(edges)
    members = forest.joined()
    _, clusters = np.unique(forest.roots(members), return_inverse=True)
    return members, clusters.astype(np.int64)


def survivors(shards: Sequence[Gathered], members: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The document that survives of each cluster: an earlier one if there is any, then the greatest by ``RANK``.

    Args:
        shards: the notes on all documents.
        members: [M] int64, numbers of documents, sorted.
        clusters: [M] int64, the cluster of each.

    Returns:
        [M] int64, the number of the document that stands for each member.
    """
    count = int(clusters.max()) + 1 if len(clusters) else 0
    best, number = np.zeros(count, RANK), np.full(count, -1, np.int64)
    settled = np.zeros(count, bool)
    offsets = offsets_of(shards)
    order = sorted(range(len(shards)), key=lambda index: not shards[index].earlier)
    for is_earlier, indices in itertools.groupby(order, key=lambda index: shards[index].earlier):
        for index in indices:
            begin, end = np.searchsorted(members, offsets[index : index + 2])
            of_shard, cluster = members[begin:end], clusters[begin:end]
            open_ = ~settled[cluster]
            of_shard, cluster = of_shard[open_], cluster[open_]
            rank = shards[index].ranks()[of_shard - offsets[index]]
            lead = _last_of_each(cluster, rank)
            of_shard, cluster, rank = of_shard[lead], cluster[lead], rank[lead]
            better = (number[cluster] < 0) | _greater(rank, best[cluster])
            best[cluster[better]], number[cluster[better]] = rank[better], of_shard[better]
        if is_earlier:
            settled = number >= 0
    return number[clusters]


def _edges_of_partition(runs: Runs, offsets: np.ndarray, item: tuple[Path, tuple[int, int]]) -> list[Path]:
    path, (low, high) = item
    keys, values, sources = runs.gather(low, high)
    names = values.dtype.names or ()
    order, fresh = groups(keys, values["check"]) if "check" in names else groups(keys)
    documents = (offsets[sources] + values["row"])[order] if len(order) else np.zeros(0, np.int64)
    edges = np.stack([documents[fresh][np.cumsum(fresh) - 1], documents], axis=1)[~fresh]
    order, fresh = groups(edges[:, 0], edges[:, 1])
    return [save_array(path, edges[order[fresh]])]


def _all_edges(shards: Sequence[Gathered], offsets: np.ndarray, files: Sequence[Path]) -> Iterator[np.ndarray]:
    """[E, 2] int64 in pieces: those within each shard, then those between shards."""
    for index, shard in enumerate(shards):
        for piece in _pieces(shard.edges()):
            yield piece.astype(np.int64) + offsets[index]
    for file in files:
        yield from _pieces(load_array(file))


def _pieces(edges: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(edges), _EDGES_AT_ONCE):
        yield np.array(edges[begin : begin + _EDGES_AT_ONCE])


def _last_of_each(cluster: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The index of the greatest rank of each cluster."""
    order = np.lexsort((rank["identity"], rank["text"], rank["bytes"], cluster))
    ordered = cluster[order]
    return order[np.append(ordered[1:] != ordered[:-1], True)] if len(order) else order


def _greater(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result, equal = np.zeros(len(left), bool), np.ones(len(left), bool)
    for name in RANK.names or ():
        result |= equal & (left[name] > right[name])
        equal &= left[name] == right[name]
    return result
