"""``leyden data build``: sources to shards, stage after stage, each result kept with what it was made from.

A shard is done when its file in ``done/`` bears the fingerprint of the present settings and inputs: so a changed
setting runs again what depends on it and nothing else, and a killed build goes on at the next shard.
"""

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import progress, say
from leyden.data.build.directory import READ, Build, Counts, StageDirectory, Tally
from leyden.data.build.recipe import BuildRecipe
from leyden.data.build.tokens import make_tokens
from leyden.data.documents import Documents, Reject
from leyden.data.engine import Engine
from leyden.data.parquet import DocumentsWriter, batches, read_batches
from leyden.data.readers import Piece, plan_shards, read_piece
from leyden.data.stage import Corpus, Stage

if TYPE_CHECKING:
    from leyden.data.label.language_model import OpenModel

EMPTY = "empty"
"""Set aside too, but no sign that anything is wrong: a sixth of a Python library's files are empty."""


def run_build(recipe: BuildRecipe, directory: Path, open_model: "OpenModel | None" = None) -> Build:
    """Run what is not done yet of ``recipe`` in ``directory``.

    Args:
        recipe: sources, stages, and what tokens are made with.
        directory: of the build.
        open_model: opens local models, for stages that ask one.

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
        corpus = Corpus({name: before.documents(name) for name in sorted(fingerprints)}, place.work, engine, open_model)
        fingerprints = _run_stage(stage, before, place, fingerprints, corpus)
    if recipe.tokens is not None:
        make_tokens(recipe.tokens, places[-1], fingerprints, directory, engine)
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
    counts = place.total()
    if not counts.kept.documents:
        raise UserError(f"No document could be read; what was set aside is in {place.path.parents[1] / 'rejected'}.")
    rejected = sum(count for reason, count in counts.rejected.items() if reason != EMPTY)
    if rejected > recipe.build.max_rejected * (rejected + counts.kept.documents):
        reasons = sorted(counts.rejected.items(), key=lambda item: -item[1])
        most = ", ".join(f"{count} {reason}" for reason, count in reasons if reason != EMPTY)
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
    stage: Stage, before: StageDirectory, place: StageDirectory, given: Mapping[str, str], corpus: Corpus
) -> dict[str, str]:
    """Run one stage over the shards of the stage before; the fingerprint of each shard, by name."""
    settings = _hash([type(stage).__name__, str(stage.VERSION), stage.model_dump_json(), *map(_digest, stage.files())])
    whole = _hash([settings, *(f"{name} {given[name]}" for name in sorted(given))])
    prints = {name: _hash([whole if stage.WHOLE_CORPUS else settings, given[name]]) for name in given}
    pending = _pending(place, prints)
    if pending and stage.WHOLE_CORPUS:
        _prepare(stage, corpus, whole)
    place.work.mkdir(parents=True, exist_ok=True)
    items = [(name, prints[name]) for name in pending]
    sizes = [before.documents(name).stat().st_size for name in pending]
    _map(corpus.engine, functools.partial(_run_shard, stage, before, place), items, sizes, stage.name)
    _tell(place)
    return prints


def _prepare(stage: Stage, corpus: Corpus, fingerprint: str) -> None:
    """Let the stage see the whole corpus, unless it has."""
    work = corpus.work
    mark, prepared = work / "fingerprint", work / "prepared"
    if not mark.exists() or mark.read_text() != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        mark.write_text(fingerprint)
    if not prepared.exists():
        started = time.perf_counter()
        stage.prepare(corpus)
        prepared.write_text(f"{time.perf_counter() - started:.3f}")


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
    counts = place.total()
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
