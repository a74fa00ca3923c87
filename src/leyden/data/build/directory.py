"""A build's directory: its stages, their shards, and what was counted.

It holds, for every stage, ``stages/NN-kind/`` with ``documents/`` (what it kept), ``dropped/`` (what it dropped, with
reasons), ``done/`` (one small file a shard: fingerprint and counts) and ``work/`` (what it learnt of the whole corpus).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.launch import Launch
from leyden.data.documents import Documents
from leyden.data.parquet import read_batches

READ = "read"
"""The first stage of every build."""


@dataclass
class Tally:
    """Documents and their UTF-8 bytes."""

    documents: int = 0
    bytes: int = 0

    def add(self, documents: Documents) -> None:
        """Count a batch."""
        self.documents += len(documents)
        self.bytes += int(documents.num_bytes().sum())


@dataclass
class Counts:
    """What a stage did to a shard, or to all of them.

    Attributes:
        given, kept: what came in and what went on.
        dropped: by reason.
        rewritten: documents whose text changed among those kept.
        rejected: what could not be read, by reason (of the first stage).
        seconds: of processor time.
    """

    given: Tally = field(default_factory=Tally)
    kept: Tally = field(default_factory=Tally)
    dropped: dict[str, Tally] = field(default_factory=dict)
    rewritten: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Counts":
        """From :func:`dataclasses.asdict`'s form."""
        return cls(
            given=Tally(**data["given"]),
            kept=Tally(**data["kept"]),
            dropped={reason: Tally(**tally) for reason, tally in data["dropped"].items()},
            rewritten=data["rewritten"],
            rejected=dict(data["rejected"]),
            seconds=data["seconds"],
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            given=_sum(self.given, other.given),
            kept=_sum(self.kept, other.kept),
            dropped={r: _sum(self.dropped.get(r), other.dropped.get(r)) for r in {**self.dropped, **other.dropped}},
            rewritten=self.rewritten + other.rewritten,
            rejected={
                r: self.rejected.get(r, 0) + other.rejected.get(r, 0) for r in {**self.rejected, **other.rejected}
            },
            seconds=self.seconds + other.seconds,
        )


def _sum(a: Tally | None, b: Tally | None) -> Tally:
    a, b = a or Tally(), b or Tally()
    return Tally(a.documents + b.documents, a.bytes + b.bytes)


@dataclass(frozen=True)
class StageDirectory:
    """Where a stage's files are.

    Attributes:
        path: ``stages/NN-kind``.
    """

    path: Path

    @property
    def name(self) -> str:
        """``NN-kind``."""
        return self.path.name

    @property
    def kind(self) -> str:
        """The stage's kind."""
        return self.name.partition("-")[2]

    @property
    def work(self) -> Path:
        """What the stage learnt of the whole corpus."""
        return self.path / "work"

    def documents(self, shard: str) -> Path:
        """What was kept of a shard."""
        return self.path / "documents" / f"{shard}.parquet"

    def dropped(self, shard: str) -> Path:
        """What was dropped of it."""
        return self.path / "dropped" / f"{shard}.parquet"

    def done(self, shard: str) -> Path:
        """Its fingerprint and counts."""
        return self.path / "done" / f"{shard}.json"

    def counts(self, shard: str, fingerprint: str | None = None) -> Counts | None:
        """What was done to a shard; None if nothing was, or (where a fingerprint is given) something else was."""
        try:
            data = json.loads(self.done(shard).read_text())
        except (OSError, ValueError):
            return None
        return Counts.of_json(data["counts"]) if fingerprint in (None, data["fingerprint"]) else None

    def shards(self) -> list[str]:
        """The names of all shards that are done, in order."""
        return sorted(path.stem for path in (self.path / "done").glob("*.json"))

    def total(self) -> Counts:
        """The counts of all shards that are done."""
        counts = (self.counts(shard) for shard in self.shards())
        return sum((count for count in counts if count is not None), Counts())

    def prepare_seconds(self) -> float:
        """How long the stage took to see the whole corpus, by the clock; 0 where it did not, or has not finished."""
        path = self.work / "prepared"
        return float(path.read_text() or 0) if path.exists() else 0.0

    def read(self, *, dropped: bool = False) -> Iterator[Documents]:
        """What was kept, or dropped, a batch at a time."""
        for shard in self.shards():
            yield from read_batches(self.dropped(shard) if dropped else self.documents(shard))


@dataclass(frozen=True)
class Build:
    """A build directory.

    Attributes:
        directory: where it is.
    """

    directory: Path

    def stages(self) -> list[StageDirectory]:
        """The stages that there are, in order."""
        return [StageDirectory(path) for path in sorted((self.directory / "stages").glob("[0-9][0-9]-*"))]

    def totals(self) -> dict[str, Counts]:
        """For each stage its counts over all shards."""
        return {stage.name: stage.total() for stage in self.stages()}

    @classmethod
    def open(cls, directory: Path) -> "Build":
        """A build that has run, at least in part.

        Raises:
            UserError: there is none.
        """
        build = cls(directory)
        if not build.stages():
            command = Launch().command("data", "build", "RECIPE", "--dir", directory)
            raise UserError(f"{directory} holds no build; make one with {command}")
        return build
