"""``leyden data build``: sources to shards, stage after stage, each result kept with what it was made from.

A build directory holds, for every stage, ``stages/NN-kind/`` with ``documents/`` (what it kept), ``dropped/`` (what it
dropped, with reasons), ``done/`` (one small file a shard: fingerprint and counts) and ``work/`` (what it learnt of the
whole corpus). A shard is done when its file in ``done/`` bears the fingerprint of the present settings and inputs: so a
changed setting runs again what depends on it and nothing else, and a killed build goes on at the next shard.
"""

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import progress, say
from leyden.data.build_recipe import BuildRecipe
from leyden.data.documents import Documents, Reject
from leyden.data.engine import Engine
from leyden.data.parquet import DocumentsWriter, batches, read_batches
from leyden.data.readers import Piece, plan_shards, read_piece
from leyden.data.stage import Corpus, Stage

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
        return {stage.name: _total(stage) for stage in self.stages()}

    @classmethod
    def open(cls, directory: Path) -> "Build":
        """A build that has run, at least in part.

        Raises:
            UserError: there is none.
        """
        build = cls(directory)
        if not build.stages():
            raise UserError(f"{directory} holds no build; make one with `leyden data build RECIPE --dir {directory}`.")
        return build


def _total(stage: StageDirectory) -> Counts:
    counts = (stage.counts(shard) for shard in stage.shards())
    return sum((count for count in counts if count is not None), Counts())


def run_build(recipe: BuildRecipe, directory: Path) -> Build:
    """Run what is not done yet of ``recipe`` in ``directory``.

    Raises:
        UserError: nothing can be read, more is set aside than allowed, the disk is full, or a stage's own reasons.
    """
    engine = Engine(recipe.build.workers or os.cpu_count() or 1, recipe.build.runner)
    build = Build(directory)
    names = [READ, *(stage.name for stage in recipe.stage)]
    places = [StageDirectory(directory / "stages" / f"{i:02d}-{name}") for i, name in enumerate(names)]
    _forget_others(build, places)
    fingerprints = _read_sources(recipe, places[0], engine)
    for stage, before, place in zip(recipe.stage, places, places[1:], strict=False):
        fingerprints = _run_stage(stage, before, place, fingerprints, engine)
    return build


def _read_sources(recipe: BuildRecipe, place: StageDirectory, engine: Engine) -> dict[str, str]:
    """Read every source into shards; the fingerprint of each shard, by name."""
    shards = {
        f"{source.name}-{number:05d}": (source, tuple(pieces))
        for source in recipe.source
        for number, pieces in enumerate(plan_shards(source, recipe.build.shard_bytes))
    }
    if not shards:
        raise UserError("The sources of this recipe hold no file that is read.")
    prints = {
        name: _hash([source.model_dump_json(), *map(repr, pieces), *_versions(pieces)])
        for name, (source, pieces) in shards.items()
    }
    items = [(name, *shards[name], prints[name]) for name in _pending(place, prints)]
    sizes = [sum(piece.num_bytes for piece in pieces) for _, _, pieces, _ in items]
    _map(engine, functools.partial(_read_shard, place), items, sizes, "reading")
    counts = _total(place)
    if not counts.kept.documents:
        raise UserError(f"No document could be read; what was set aside is in {place.path.parents[1] / 'rejected'}.")
    rejected = sum(counts.rejected.values())
    if rejected > recipe.build.max_rejected * (rejected + counts.kept.documents):
        most = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.rejected.items(), key=lambda item: -item[1]))
        raise UserError(
            f"{rejected} of {rejected + counts.kept.documents} documents could not be read ({most}), more than "
            f"build.max_rejected = {recipe.build.max_rejected}; see {place.path.parents[1] / 'rejected'}, then "
            "mend the files or raise the share."
        )
    return prints


def _versions(pieces: Iterable[Piece]) -> Iterator[str]:
    """What tells whether a file is as it was: its size and when it was written."""
    for piece in pieces:
        status = piece.source.path.stat()
        yield f"{status.st_size} {status.st_mtime_ns}"


def _read_shard(place: StageDirectory, item: tuple[str, Any, Sequence[Piece], str]) -> int:
    """Read one shard's pieces, and write what was set aside to ``rejected/``."""
    shard, settings, pieces, fingerprint = item
    started, counts, rejects = time.process_time(), Counts(), []
    with DocumentsWriter(place.documents(shard)) as kept, DocumentsWriter(place.dropped(shard)):
        for batch in batches(d for piece in pieces for d in read_piece(piece, settings, rejects)):
            kept.write(batch)
            counts.given.add(batch)
    counts.kept = counts.given
    for reject in rejects:
        counts.rejected[reject.reason] = counts.rejected.get(reject.reason, 0) + 1
    _write_rejects(place.path.parents[1] / "rejected" / f"{shard}.jsonl", rejects)
    return _finish(place, shard, fingerprint, counts, started)


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    path.unlink(missing_ok=True)
    if rejects:
        with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(reject)) + "\n" for reject in rejects)


def _run_stage(
    stage: Stage, before: StageDirectory, place: StageDirectory, given: Mapping[str, str], engine: Engine
) -> dict[str, str]:
    """Run one stage over the shards of the stage before; the fingerprint of each shard, by name."""
    settings = _hash([type(stage).__name__, str(stage.VERSION), stage.model_dump_json(), *map(_digest, stage.files())])
    whole = _hash([settings, *(f"{name} {given[name]}" for name in sorted(given))])
    prints = {name: _hash([whole if stage.WHOLE_CORPUS else settings, given[name]]) for name in given}
    pending = _pending(place, prints)
    if pending and stage.WHOLE_CORPUS:
        _prepare(stage, before, place, sorted(given), whole, engine)
    place.work.mkdir(parents=True, exist_ok=True)
    items = [(name, prints[name]) for name in pending]
    sizes = [before.documents(name).stat().st_size for name in pending]
    _map(engine, functools.partial(_run_shard, stage, before, place), items, sizes, stage.name)
    _tell(place)
    return prints


def _prepare(
    stage: Stage, before: StageDirectory, place: StageDirectory, shards: Sequence[str], fingerprint: str, engine: Engine
) -> None:
    """Let the stage see the whole corpus, unless it has."""
    mark = place.work / "fingerprint"
    if not mark.exists() or mark.read_text() != fingerprint:
        shutil.rmtree(place.work, ignore_errors=True)
        place.work.mkdir(parents=True)
        mark.write_text(fingerprint)
    prepared = place.work / "prepared"
    if not prepared.exists():
        stage.prepare(Corpus({name: before.documents(name) for name in shards}, place.work, engine))
        prepared.touch()


def _run_shard(stage: Stage, before: StageDirectory, place: StageDirectory, item: tuple[str, str]) -> int:
    """Apply a stage to one shard, a batch at a time."""
    shard, fingerprint = item
    started, counts = time.process_time(), Counts()
    with DocumentsWriter(place.documents(shard)) as kept, DocumentsWriter(place.dropped(shard)) as dropped:
        for batch in read_batches(before.documents(shard)):
            judged = stage.apply(batch, shard, place.work)
            if len(judged) < len(batch):
                raise RuntimeError(f"stage {stage.name} lost {len(batch) - len(judged)} documents of shard {shard}")
            counts.given.add(batch)
            counts.rewritten += _rewritten(batch, judged)
            staying, leaving = judged.kept(), judged.dropped()
            counts.kept.add(staying)
            for reason in set(leaving.column("reason")):
                counts.dropped.setdefault(reason, Tally()).add(leaving.having("reason", reason))
            kept.write(staying)
            dropped.write(leaving)
    return _finish(place, shard, fingerprint, counts, started)


def _rewritten(before: Documents, after: Documents) -> int:
    """How many of the documents that stay have another text than they had."""
    if after.table.column("text") is before.table.column("text") and len(after) == len(before):
        return 0
    texts = zip(before.texts(), after.texts(), after.column("reason"), strict=False)
    return sum(reason is None and a != b for a, b, reason in texts)


def _finish(place: StageDirectory, shard: str, fingerprint: str, counts: Counts, started: float) -> int:
    """Write that a shard is done, once all else is on disk."""
    counts.seconds = time.process_time() - started
    with atomic_file(place.done(shard)) as part:
        part.write_text(json.dumps({"fingerprint": fingerprint, "counts": asdict(counts)}))
    return counts.given.bytes


def _pending(place: StageDirectory, prints: Mapping[str, str]) -> list[str]:
    """The shards still to be done; what another recipe or other inputs left is removed."""
    for shard in place.shards():
        if shard not in prints or place.counts(shard, prints[shard]) is None:
            for path in (place.done(shard), place.documents(shard), place.dropped(shard)):
                path.unlink(missing_ok=True)
    return [name for name in sorted(prints) if not place.done(name).exists()]


def _forget_others(build: Build, places: Iterable[StageDirectory]) -> None:
    """Remove stages that the recipe no longer has."""
    names = {place.name for place in places}
    for stage in build.stages():
        if stage.name not in names:
            shutil.rmtree(stage.path)


def _map(engine: Engine, task: Any, items: Sequence[Any], sizes: Sequence[float], title: str) -> None:
    """Run a task on every item with a progress bar over their sizes."""
    if not items:
        return
    with progress(title, sum(sizes), unit="bytes") as bar:
        for index, _ in engine.map(task, items):
            bar.advance(sizes[index])


def _tell(place: StageDirectory) -> None:
    counts = _total(place)
    reasons = sorted(counts.dropped.items(), key=lambda item: -item[1].documents)
    why = ", ".join(f"{tally.documents:,} {reason}" for reason, tally in reasons[:4])
    say(
        f"{place.name}: {counts.kept.documents:,} of {counts.given.documents:,} documents kept, "
        f"{counts.kept.bytes / 1e6:.1f} of {counts.given.bytes / 1e6:.1f} MB{f' ({why})' if why else ''}"
    )


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    """Of a file's content, or of all the files of a folder."""
    if path.is_dir():
        return _hash(
            [f"{file.relative_to(path)} {_digest(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
