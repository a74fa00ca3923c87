"""What a report says of near-duplicates: clusters, the S-curve as it is and as it should be, pairs, and seeds."""

import heapq
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leyden.core.files import atomic_file
from leyden.data.dedup.clusters import PARTITIONS, Forest
from leyden.data.dedup.lsh import band_hashes, collision_probability, signatures
from leyden.data.dedup.normalisation import normalised, texts_of
from leyden.data.dedup.runs import groups, load_array
from leyden.data.dedup.verdicts import stood_for
from leyden.data.dedup.verification import elect
from leyden.data.dedup.windows import hash_strings, jaccard, mix, shingle_sets
from leyden.data.documents import Documents, pc
from leyden.data.stage import Corpus

_FILE = "evidence.json"
_PAIRS = 20
_PLANTED = 200
_EXCERPT_CHARACTERS = 300
_BINS = 20
_SAMPLED_CHARACTERS = 100_000
_PLANTED_CHARACTERS = 10_000
"""Longer texts are measured on their beginning, so that what is in memory is bounded."""


def cluster_sizes(work: Path) -> dict[str, Any]:
    """How many clusters there are, the documents in them and dropped, clusters of each size, and partitions."""
    standing = load_array(work / "standing.npy")
    members = load_array(work / "members.npy")
    _, sizes = np.unique(standing, return_counts=True)
    values, counts = np.unique(sizes[sizes > 1], return_counts=True)
    return {
        "clusters": int(counts.sum()),
        "clustered_documents": int((values * counts).sum()),
        "documents_stood_for": int((standing != members).sum()),
        "partitions": int(load_array(work / PARTITIONS)[0]),
        "cluster_sizes": {str(size): int(count) for size, count in zip(values, counts, strict=True)},
    }


def read_evidence(work: Path) -> dict[str, Any]:
    """What :func:`gather_evidence` found, if it ran."""
    path = work / _FILE
    return json.loads(path.read_text()) if path.exists() else {}


def gather_evidence(
    corpus: Corpus,
    *,
    curve: tuple[int, int],
    threshold: float | None,
    shingle_words: int,
    seed: int,
    num_seeds: int,
    num_documents: int,
) -> None:
    """Measure on a sample of the corpus, and leave what is found in the stage's work.

    Documents are sampled by a hash of their least shingle: near-duplicates mostly share it, so they are sampled
    together, with probability s for a pair of similarity s; a plain sample would part nearly all of them.

    Args:
        corpus: the documents.
        curve: bands and rows.
        threshold: the similarity from which a pair is verified; None where pairs are not.
        shingle_words: words in a shingle.
        seed: of the permutations.
        num_seeds: seeds from it on that removed sets are compared under.
        num_documents: of the sample.
    """
    texts = _sample(corpus, num_documents, shingle_words)
    found = {
        "curve": _measured_curve(texts[:_PLANTED], curve, shingle_words, seed),
        "pairs": list(_pairs(corpus, shingle_words)),
        "seeds": _seeds(texts, curve, threshold, shingle_words, range(seed, seed + num_seeds)),
    }
    with atomic_file(corpus.work / _FILE) as part:
        part.write_text(json.dumps(found, ensure_ascii=False))


def _comparable(documents: Documents) -> pa.Array:
    texts = normalised(texts_of(documents))
    return texts.filter(pc.greater(pc.binary_length(texts), 0))


def _sample(corpus: Corpus, count: int, shingle_words: int) -> list[str]:
    """The texts, normalised, whose least shingle has the least hash; of equals those whose text has."""
    least: list[tuple[int, int, str]] = []
    for documents in corpus.batches():
        texts = _comparable(documents)
        key = mix(signatures(texts, 1, shingle_words, 0)[:, 0].astype(np.uint64), np.uint64(1))
        own = hash_strings(texts)
        rows = np.lexsort((own, key))[:count]
        fresh = zip(
            (-key[rows].astype(object)).tolist(), (-own[rows].astype(object)).tolist(), rows.tolist(), strict=True
        )
        for minus_key, minus_own, row in fresh:  # a heap of the least: its top is the greatest of them
            if len(least) < count:
                heapq.heappush(least, (minus_key, minus_own, texts[row].as_py()[:_SAMPLED_CHARACTERS]))
            elif (minus_key, minus_own) > least[0][:2]:
                heapq.heapreplace(least, (minus_key, minus_own, texts[row].as_py()[:_SAMPLED_CHARACTERS]))
    return [text for _, _, text in sorted(least, reverse=True)]


def _measured_curve(texts: list[str], curve: tuple[int, int], shingle_words: int, seed: int) -> list[dict[str, Any]]:
    """The S-curve on pairs of a sampled text and that text with words replaced, one in every 5 to 1000."""
    generator = np.random.default_rng(seed)
    texts = [text[:_PLANTED_CHARACTERS].rstrip(" ") for text in texts]
    longer = [text for text in texts if text.count(" ") >= 2 * shingle_words]
    pairs = [(text, _edited(text, rate, generator)) for text in longer for rate in np.geomspace(0.001, 0.2, 8)]
    if not pairs:
        return []
    left, right = (pa.array(side, pa.large_string()) for side in zip(*pairs, strict=True))
    similarity = np.array(_similarities(left, right, shingle_words))
    met = (_bands(left, curve, shingle_words, seed) == _bands(right, curve, shingle_words, seed)).any(axis=1)
    theory = collision_probability(similarity, *curve)
    bins = np.minimum((similarity * _BINS).astype(int), _BINS - 1)
    return [
        {
            "similarity": float(similarity[bins == index].mean()),
            "pairs": int((bins == index).sum()),
            "theory": float(theory[bins == index].mean()),
            "measured": float(met[bins == index].mean()),
        }
        for index in np.unique(bins)
    ]


def _edited(text: str, rate: float, generator: np.random.Generator) -> str:
    words = text.split(" ")
    for place in np.flatnonzero(generator.random(len(words)) < rate):
        words[place] = f"edit{generator.integers(1 << 40):x}"
    return " ".join(words)


def _bands(texts: pa.Array, curve: tuple[int, int], shingle_words: int, seed: int) -> np.ndarray:
    bands, rows = curve
    return band_hashes(signatures(texts, bands * rows, shingle_words, seed), bands, rows)


def _similarities(left: pa.Array, right: pa.Array, shingle_words: int) -> list[float]:
    sides = [
        np.split(hashes, starts[1:-1])
        for hashes, starts in (shingle_sets(side, shingle_words) for side in (left, right))
    ]
    return [jaccard(a, b) for a, b in zip(*sides, strict=True)]


def _seeds(
    texts: list[str], curve: tuple[int, int], threshold: float | None, shingle_words: int, seeds: range
) -> dict[str, Any]:
    """How alike the sets are that are removed from the sample under some seeds."""
    ranked = pa.array(sorted(texts, key=len, reverse=True), pa.large_string())  # the longest survive, as in the build
    hashes, starts = shingle_sets(ranked, shingle_words)
    sets = np.split(hashes, starts[1:-1])
    removed = [_removed(_bands(ranked, curve, shingle_words, seed), sets, threshold) for seed in seeds]
    alike = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in itertools.combinations(removed, 2)]
    return {
        "documents": len(texts),
        "removed": [len(one) for one in removed],
        "jaccard_mean": float(np.mean(alike)),
        "jaccard_least": float(np.min(alike)),
    }


def _removed(bands: np.ndarray, sets: list[np.ndarray], threshold: float | None) -> set[int]:
    """The rows, in the order of their rank, that another stands for."""
    forest, rows = Forest(len(bands)), np.repeat(np.arange(len(bands)), bands.shape[1])
    order, fresh = groups(bands.ravel())
    forest.join(np.stack([rows[order][fresh][np.cumsum(fresh) - 1], rows[order]], axis=1)[~fresh])
    members = forest.joined()
    roots = forest.roots(members)
    if threshold is None:
        return set(members[roots != members].tolist())
    clusters = np.split(
        members[np.argsort(roots, kind="stable")], np.cumsum(np.unique(roots, return_counts=True)[1])[:-1]
    )
    never = np.zeros(len(bands), bool)
    stood = (pair for cluster in clusters for pair in elect(cluster.tolist(), sets, threshold, never))
    return {member for member, survivor, _ in stood if member != survivor}


def _pairs(corpus: Corpus, shingle_words: int) -> Iterator[dict[str, Any]]:
    """Some dropped documents beside their survivors, chosen by a hash of the dropped one's id."""
    chosen: list[tuple[int, str, str, int, int]] = []
    for path in sorted((corpus.work / "verdicts").glob("*.parquet")):
        table = stood_for(pq.read_table(path)).combine_chunks()
        keys = hash_strings(table.column("id").combine_chunks()).tolist()
        names = ("id", "survivor", "number", "survivor_number")
        found = zip(keys, *(table.column(name).to_pylist() for name in names), strict=True)
        chosen = heapq.nsmallest(_PAIRS, [*chosen, *found])
    texts = _texts_by_number(corpus, {number for *_, one, other in chosen for number in (one, other)})
    for _, dropped, survivor, number, survivor_number in chosen:
        if survivor_number not in texts:  # of an earlier crawl
            continue
        both = texts[number], texts[survivor_number]
        pair = pa.array(both, pa.large_string())
        words = normalised(pair)
        yield {
            "dropped": dropped,
            "survivor": survivor,
            "similarity": _similarities(words[:1], words[1:], shingle_words)[0],
            "dropped_text": both[0][:_EXCERPT_CHARACTERS],
            "survivor_text": both[1][:_EXCERPT_CHARACTERS],
        }


def _texts_by_number(corpus: Corpus, numbers: set[int]) -> dict[int, str]:
    """The texts of some documents of the corpus, by their numbers if all are numbered through."""
    wanted, found, first = np.array(sorted(numbers), np.int64), {}, 0
    for documents in corpus.batches():
        inside = wanted[(wanted >= first) & (wanted < first + len(documents))]
        if len(inside):
            texts = Documents(documents.table.take(inside - first)).texts()
            found.update(zip(inside.tolist(), texts, strict=True))
        first += len(documents)
    return found
