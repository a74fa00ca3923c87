"""Both ways of the join find the clusters that a dictionary finds."""

from pathlib import Path

import numpy as np

from leyden.bench.data.joins import BANDS, by_daft, by_runs, records


def slow_clusters(documents: int) -> tuple[list[int], list[frozenset[int]]]:
    """One bucket after another, sets in a dictionary."""
    buckets: dict[int, list[int]] = {}
    for first, keys in records(documents):
        for row, of_document in enumerate(keys.tolist()):
            for key in of_document:
                buckets.setdefault(key, []).append(first + row)
    cluster_of = {number: {number} for number in range(documents)}
    for bucket in buckets.values():
        for number in bucket[1:]:
            if cluster_of[number] is not cluster_of[bucket[0]]:
                joined = cluster_of[bucket[0]] | cluster_of[number]
                cluster_of.update(dict.fromkeys(joined, joined))
    found = {number: frozenset(cluster) for number, cluster in cluster_of.items() if len(cluster) > 1}
    return sorted(found), [found[number] for number in sorted(found)]


def test_both_find_the_same_clusters(tmp_path: Path) -> None:
    documents = 901
    members, sets = slow_clusters(documents)
    assert 200 < len(members) < documents
    for found, clusters in (by_runs(documents, tmp_path / "runs", 1), by_daft(documents, tmp_path / "daft")):
        assert found.tolist() == members
        assert [frozenset(found[clusters == cluster].tolist()) for cluster in clusters] == sets


def test_records_are_alike_in_all_bands_or_in_some() -> None:
    keys = np.concatenate([of_shard for _, of_shard in records(2000)])
    assert keys.shape == (2000, BANDS)
    _, first, counts = np.unique(keys[:, -1], return_index=True, return_counts=True)
    assert 1500 < len(first) < 1900  # exact copies share the last band, near copies do not
    assert counts.max() > 1
