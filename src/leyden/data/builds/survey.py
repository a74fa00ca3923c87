"""What a build's documents are like: sizes, languages, sources, scores, and samples. Made from its files alone."""

import functools
import heapq
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from leyden.data.builds.directory import StageDirectory
from leyden.data.documents import Documents
from leyden.data.engine import DataEngine
from leyden.data.parquet import read_batches

_SCORES = 2000
"""Values kept of each score and shard."""
_EXCERPT = 1500
"""Characters of a sample."""


@dataclass(frozen=True, order=True)
class Sample:
    """A document to look at; those of the smallest hashes are chosen, so the same ones at every look."""

    rank: int
    id: str
    text: str
    reason: str | None = None
    detail: str | None = None


@dataclass
class Survey:
    """Sums over documents.

    Attributes:
        documents, bytes: by source, and by language (empty where unknown).
        lengths: documents by the power of two of their bytes.
        scores: some values of each score.
        samples: a few documents of each group: a source, or a reason.
    """

    documents: dict[str, Counter[str]] = field(default_factory=lambda: {"source": Counter(), "language": Counter()})
    bytes: dict[str, Counter[str]] = field(default_factory=lambda: {"source": Counter(), "language": Counter()})
    lengths: Counter[int] = field(default_factory=Counter)
    scores: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, documents: Documents, group: str, samples: int) -> None:
        """Count a batch, and keep ``samples`` of each value of its column ``group``."""
        sizes = documents.num_bytes()
        for column in ("source", "language"):
            for name, size in zip(documents.column(column), sizes.tolist(), strict=True):
                self.documents[column][name or ""] += 1
                self.bytes[column][name or ""] += size
        powers = np.floor(np.log2(np.maximum(sizes, 1))).astype(int)
        self.lengths.update(powers.tolist())
        for scores in documents.column("scores"):
            for name, value in scores or ():
                kept = self.scores.setdefault(name, [])
                if len(kept) < _SCORES:
                    kept.append(value)
        self._sample(documents, group, samples)

    def _sample(self, documents: Documents, group: str, samples: int) -> None:
        ids, reasons, details = (documents.column(name) for name in ("id", "reason", "detail"))
        ranked: dict[str, list[tuple[int, int]]] = {}
        for row, value in enumerate(documents.column(group)):
            ranked.setdefault(value or "", []).append((xxhash.xxh64_intdigest(ids[row].encode()), row))
        texts = documents.texts()
        for value, rows in ranked.items():
            found = [
                Sample(rank, ids[row], texts[row][:_EXCERPT], reasons[row], details[row])
                for rank, row in heapq.nsmallest(samples, rows)
            ]
            self.samples[value] = heapq.nsmallest(samples, self.samples.get(value, []) + found)

    def __add__(self, other: "Survey") -> "Survey":
        groups = {*self.samples, *other.samples}
        return Survey(
            documents={name: self.documents[name] + other.documents[name] for name in self.documents},
            bytes={name: self.bytes[name] + other.bytes[name] for name in self.bytes},
            lengths=self.lengths + other.lengths,
            scores={n: self.scores.get(n, []) + other.scores.get(n, []) for n in {**self.scores, **other.scores}},
            samples={g: sorted(self.samples.get(g, []) + other.samples.get(g, [])) for g in groups},
        )


def survey(stage: StageDirectory, engine: DataEngine, *, dropped: bool = False, samples: int = 3) -> Survey:
    """Look at all that a stage kept, or dropped."""
    paths = [(stage.dropped if dropped else stage.documents)(shard) for shard in stage.shards()]
    task = functools.partial(_survey_shard, group="reason" if dropped else "source", samples=samples)
    found = dict(engine.map(task, paths))
    return sum((found[index] for index in sorted(found)), Survey())


def _survey_shard(path: Path, group: str, samples: int) -> Survey:
    result = Survey()
    for batch in read_batches(path):
        result.add(batch, group, samples)
    return result
