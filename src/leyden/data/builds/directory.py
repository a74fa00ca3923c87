"""A build's directory: its stages, their shards, and what was counted.

It holds, for every stage, ``stages/NN-kind/`` with ``documents/`` (what it kept), ``dropped/`` (what it dropped, with
reasons), ``done/`` (a mark a shard: fingerprint, counts, hashes) and ``work/`` (what it learnt of the whole corpus).
``finished.json`` is there while all of it is whole: written last, and removed before anything else changes. All paths
within are relative, so a build can be moved and copied.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.launch import Launch
from leyden.core.lock import lock_holder
from leyden.core.log import say
from leyden.data.documents import Documents
from leyden.data.marks import Mark, read_mark, side_by_side
from leyden.data.parquet import read_batches

READ = "read"
"""The first stage of every build."""
FINISHED = "finished.json"
"""The mark of a build of which nothing is left to do."""


@dataclass
class DocumentTally:
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
        files: that were read (of the first stage).
        rejected: what could not be read, by reason (of the first stage).
        seconds: of processor time.
    """

    given: DocumentTally = field(default_factory=DocumentTally)
    kept: DocumentTally = field(default_factory=DocumentTally)
    dropped: dict[str, DocumentTally] = field(default_factory=dict)
    rewritten: int = 0
    files: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Counts":
        """From :func:`dataclasses.asdict`'s form."""
        return cls(
            given=DocumentTally(**data["given"]),
            kept=DocumentTally(**data["kept"]),
            dropped={reason: DocumentTally(**tally) for reason, tally in data["dropped"].items()},
            rewritten=data["rewritten"],
            files=data.get("files", 0),
            rejected=dict(data["rejected"]),
            seconds=data["seconds"],
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            given=_sum(self.given, other.given),
            kept=_sum(self.kept, other.kept),
            dropped={r: _sum(self.dropped.get(r), other.dropped.get(r)) for r in {**self.dropped, **other.dropped}},
            rewritten=self.rewritten + other.rewritten,
            files=self.files + other.files,
            rejected=dict(Counter(self.rejected) + Counter(other.rejected)),
            seconds=self.seconds + other.seconds,
        )


def _sum(a: DocumentTally | None, b: DocumentTally | None) -> DocumentTally:
    a, b = a or DocumentTally(), b or DocumentTally()
    return DocumentTally(a.documents + b.documents, a.bytes + b.bytes)


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

    @property
    def prepared(self) -> Path:
        """The mark of ``work``, once the stage has seen the whole corpus."""
        return self.work / "prepared"

    def documents(self, shard: str) -> Path:
        """What was kept of a shard."""
        return self.path / "documents" / f"{shard}.parquet"

    def dropped(self, shard: str) -> Path:
        """What was dropped of it."""
        return self.path / "dropped" / f"{shard}.parquet"

    def rejected(self, shard: str) -> Path:
        """What could not be read of it, where this is the stage that reads the sources."""
        return self.path.parents[1] / "rejected" / f"{shard}.jsonl"

    def all_rejected(self) -> list[Path]:
        """The files of all that could not be read; none of a stage that does not read the sources."""
        return sorted(self.path.parents[1].glob("rejected/*.jsonl")) if self.kind == READ else []

    def done(self, shard: str) -> Path:
        """The mark of both, and of what was set aside unread: with its fingerprint and counts."""
        return self.path / "done" / f"{shard}.json"

    def mark(self, shard: str, fingerprint: str | None = None) -> Mark | None:
        """What says that a shard is done; None if nothing does, or (where a fingerprint is given) of something else."""
        mark = read_mark(self.done(shard))
        if mark is None or not mark.facts.keys() >= {"fingerprint", "counts"}:
            return None
        return mark if fingerprint in (None, mark.facts["fingerprint"]) else None

    def shards(self) -> list[str]:
        """The names of all shards that are done, in order."""
        return sorted(path.stem for path in (self.path / "done").glob("*.json"))

    def total(self) -> Counts:
        """The counts of all shards that are done."""
        marks = (self.mark(shard) for shard in self.shards())
        return sum((Counts.of_json(mark.facts["counts"]) for mark in marks if mark is not None), Counts())

    def prepare_seconds(self) -> float:
        """How long the stage took to see the whole corpus, by the clock; 0 where it did not, or has not finished."""
        mark = read_mark(self.prepared)
        return 0.0 if mark is None else float(mark.facts["seconds"])

    def read(self, *, dropped: bool = False) -> Iterator[Documents]:
        """What was kept, or dropped, a batch at a time.

        Raises:
            UserError: a file is damaged.
        """
        for path in self.files(dropped=dropped):
            yield from read_batches(path)

    def files(self, *, dropped: bool = False) -> list[Path]:
        """The files of what was kept, or dropped, each compared with its hash.

        Raises:
            UserError: one is damaged.
        """
        shards = self.shards()
        kept, left = [self.documents(shard) for shard in shards], [self.dropped(shard) for shard in shards]
        read, unread = (left, kept) if dropped else (kept, left)
        for fault in side_by_side(lambda pair: self._fault(*pair), list(zip(shards, unread, strict=True))):
            self._refuse(fault)
        return read

    def check_work(self) -> None:
        """Compare what the stage learnt with its hashes.

        Raises:
            UserError: a file is damaged, or the stage has not seen the whole corpus yet.
        """
        mark = read_mark(self.prepared)
        self._refuse(f"{self.work} is not finished" if mark is None else mark.fault())

    def _fault(self, shard: str, unread: Path) -> str | None:
        mark = self.mark(shard)
        return f"{self.done(shard)} is damaged" if mark is None else mark.fault(unread=[unread])

    def _refuse(self, fault: str | None) -> None:
        if fault:
            raise UserError(f"{fault}. Remove it; to make it again: {Build(self.path.parents[1]).command()}")


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
        """A build that has run, at least in part, to look at; that it has not finished is said.

        Raises:
            UserError: there is none.
        """
        build = cls(directory)
        if not directory.exists():
            raise UserError(f"{directory} holds no build: it does not exist. Give the directory of one.")
        if not build.stages():
            command = Launch().command("data", "build", "RECIPE", "--dir", directory)
            raise UserError(f"{directory} holds no build; make one with {command}")
        if build.finished() is None:
            say(f"{build.unfinished()}; what follows is of its present state")
        return build

    @classmethod
    def whole(cls, directory: Path) -> "Build":
        """A build that has finished, to go on from: to train or evaluate on, or to compare with.

        Raises:
            UserError: there is none, or it has not finished.
        """
        if directory.exists() and cls(directory).stages() and cls(directory).finished() is None:
            raise UserError(f"{cls(directory).unfinished()}; run it again: {cls(directory).command()}")
        return cls.open(directory)

    def unfinished(self) -> str:
        """That the build has not finished, in words, and who is at it."""
        holder = lock_holder(self.directory)
        return f"the build {self.directory} has not finished{f' ({holder})' if holder else ''}"

    def finished(self) -> Mark | None:
        """The mark that nothing is left to do."""
        return read_mark(self.directory / FINISHED)

    def command(self) -> str:
        """The line that goes on with the build, and makes again what is not whole."""
        return Launch().command("data", "build", self.directory / "recipe.toml", "--dir", self.directory)
