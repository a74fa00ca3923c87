"""``leyden data build``: sources to shards, stage after stage, each result kept with what it was made from.

A shard is done when its mark in ``done/`` bears the fingerprint of the present settings and inputs: so a changed
setting runs again what depends on it and nothing else, and a killed build goes on at the next shard. Before the first
change the build's own mark (``finished.json``) is removed, and written again once all is whole.
"""

import functools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file, discard, remove_leftovers
from leyden.core.lock import folder_lock
from leyden.core.log import progress, say
from leyden.core.threads import require_threads
from leyden.data.builds.directory import FINISHED, Build, Counts, DocumentTally, StageDirectory
from leyden.data.builds.plan import BuildStep, fingerprint, plan_steps
from leyden.data.builds.recipe import BuildRecipe
from leyden.data.builds.rejects import RejectFile, by_reason, reading_line, rejects_of, write_not_read
from leyden.data.builds.tokens import make_tokens, tokens_fault, tokens_files, tokens_made_from
from leyden.data.documents import Documents
from leyden.data.engine import DataEngine
from leyden.data.marks import tell_damage, write_mark
from leyden.data.parquet import DocumentsWriter, batches, read_batches
from leyden.data.readers import Piece, read_piece
from leyden.data.readers.problem import HARMLESS
from leyden.data.stage import Corpus, Stage

if TYPE_CHECKING:
    from leyden.data.label.language_model import OpenModel

DOING = "builds a corpus"
"""What the lock of a build's directory says."""
_ARROW_THREADS, _OTHER_THREADS = 16, 2
"""What libraries start for the least build: up to one a core, and some that read files."""


def run_build(recipe: BuildRecipe, directory: Path, open_model: "OpenModel | None" = None) -> Build:
    """Run what is not done yet of ``recipe`` in ``directory``, as the only process there.

    Args:
        recipe: sources, stages, and what tokens are made with.
        directory: of the build.
        open_model: opens local models, for stages that ask one.

    Raises:
        UserError: nothing can be read, more is set aside than allowed, the disk is full, another process builds there,
            or a stage's own reasons.
    """
    with folder_lock(directory, DOING):
        return carry_out(recipe, directory, open_model)


def carry_out(recipe: BuildRecipe, directory: Path, open_model: "OpenModel | None" = None) -> Build:
    """:func:`run_build` by one who holds the directory's lock."""
    require_threads(min(os.cpu_count() or 1, _ARROW_THREADS) + _OTHER_THREADS, "A data build")
    engine = DataEngine(recipe.build.workers or os.cpu_count() or 1, recipe.build.runner)
    build = Build(directory)
    _clear_up(directory)
    steps = plan_steps(recipe, directory)
    made_from = _made_from(recipe, steps)
    write_not_read(steps[0].place, steps[0].skipped)
    if not any(step.pending or step.prepares for step in steps) and _is_finished(build, steps, made_from):
        _check_rejected(recipe, steps[0].place)
        return build
    discard(directory / FINISHED)
    _forget_others(build, [step.place for step in steps])
    _read_sources(steps[0], engine)
    _check_rejected(recipe, steps[0].place)
    for before, step in zip(steps, steps[1:], strict=False):
        shards = {name: before.place.documents(name) for name in sorted(step.prints)}
        _run_stage(step, before.place, Corpus(shards, step.place.work, engine, open_model))
    make_tokens(recipe.tokens, steps[-1].place, steps[-1].prints, directory, engine)
    write_mark(directory / FINISHED, tokens_files(directory), {"made_from": made_from})
    return build


def _made_from(recipe: BuildRecipe, steps: Sequence[BuildStep]) -> str:
    """The fingerprint of a finished build."""
    shards = (f"{name} {print_}" for name, print_ in sorted(steps[-1].prints.items()))
    return fingerprint([tokens_made_from(recipe.tokens), *(step.place.name for step in steps), *shards])


def _is_finished(build: Build, steps: Sequence[BuildStep], made_from: str) -> bool:
    """Whether nothing is left to do of a build whose shards are all whole."""
    mark = build.finished()
    if mark is None or mark.facts.get("made_from") != made_from:
        return False
    if [stage.name for stage in build.stages()] != [step.place.name for step in steps]:
        return False
    fault = mark.fault() or tokens_fault(build.directory)
    tell_damage([fault] if fault else [])
    return fault is None


def _clear_up(directory: Path) -> None:
    """Remove what a killed build left half written."""
    for name in ("stages", "tokens", "tokenizer", "rejected", "report"):
        remove_leftovers(directory / name)
    remove_leftovers(directory, below=False)


def _read_sources(step: BuildStep, engine: DataEngine) -> None:
    """Read into shards what has not been read."""
    _remove_others(step)
    items = [(name, *step.sources[name], step.prints[name]) for name in step.pending]
    sizes = [sum(piece.num_bytes for piece in pieces) for _, _, pieces, _ in items]
    _map(engine, functools.partial(_read_shard, step.place), items, sizes, "reading")


def _check_rejected(recipe: BuildRecipe, place: StageDirectory) -> None:
    """Say what reading came to; refuse to go on without documents, or with too many that could not be read."""
    say(reading_line(place))
    counts, folder = place.total(), place.path.parents[1] / "rejected"
    documents = counts.kept.documents
    if not documents:
        first = next((str(reject) for reject in rejects_of(place)), "none")
        what = by_reason(counts.rejected, 4)
        raise UserError(f"No document could be read ({what}). The first that was set aside: {first}.")
    rejected = {reason: count for reason, count in counts.rejected.items() if reason not in HARMLESS}
    aside = sum(rejected.values())
    if aside > recipe.build.max_rejected * (aside + documents):
        raise UserError(
            f"{aside} of {aside + documents} documents could not be read ({by_reason(rejected, 4)}), more than "
            f"build.max_rejected = {recipe.build.max_rejected}; see {folder}, then mend the files or raise the share."
        )


def _read_shard(place: StageDirectory, item: tuple[str, Any, Sequence[Piece], str]) -> int:
    """Read one shard's pieces, and write what was set aside to ``rejected/``."""
    shard, settings, pieces, fingerprint = item
    started, counts = time.process_time(), Counts(files=sum(piece.start == 0 for piece in pieces))
    with (
        RejectFile(place.rejected(shard)) as rejects,
        DocumentsWriter(place.documents(shard)) as kept,
        DocumentsWriter(place.dropped(shard)),
    ):
        for batch in batches(d for piece in pieces for d in read_piece(piece, settings, rejects)):
            kept.write(batch)
            counts.given.add(batch)
    counts.kept, counts.rejected = counts.given, dict(rejects.counts)
    return _finish(place, shard, fingerprint, counts, started, rejects.paths())


def _run_stage(step: BuildStep, before: StageDirectory, corpus: Corpus) -> None:
    """Run what is left of one stage over the shards of the stage before."""
    stage, place = step.stage, step.place
    assert stage is not None
    _remove_others(step)
    if step.prepares:
        _prepare(step, stage, corpus)
    discard(corpus.scratch)
    items = [(name, step.prints[name]) for name in step.pending]
    sizes = [before.documents(name).stat().st_size for name in step.pending]
    _map(corpus.engine, functools.partial(_run_shard, stage, before, place), items, sizes, stage.name)
    _tell(place)
    if summary := stage.summary(place.work):
        say(f"{place.name}: {summary}")


def _prepare(step: BuildStep, stage: Stage, corpus: Corpus) -> None:
    """Let the stage see the whole corpus, going on with what an interrupted run of the same on the same left."""
    work, begun = corpus.work, corpus.work / "fingerprint"
    if not begun.exists() or begun.read_bytes() != step.whole.encode():
        discard(work)
        with atomic_file(begun) as part:
            part.write_text(step.whole)
    discard(step.place.prepared)
    started = time.perf_counter()
    stage.prepare(corpus)
    seconds = time.perf_counter() - started
    files = [path for path in work.rglob("*") if path.is_file() and corpus.scratch not in path.parents]
    write_mark(step.place.prepared, files, {"fingerprint": step.whole, "seconds": round(seconds, 3)})


def _run_shard(stage: Stage, before: StageDirectory, place: StageDirectory, item: tuple[str, str]) -> int:
    """Apply a stage to one shard, a batch at a time."""
    shard, fingerprint = item
    started, counts = time.process_time(), Counts()
    with DocumentsWriter(place.documents(shard)) as kept, DocumentsWriter(place.dropped(shard)) as dropped:
        for batch in read_batches(before.documents(shard)):
            judged = stage.apply_safely(batch, shard, place.work)
            if len(judged) < len(batch):
                raise RuntimeError(f"stage {stage.name} lost {len(batch) - len(judged)} documents of shard {shard}")
            counts.given.add(batch)
            counts.rewritten += _rewritten(batch, judged)
            staying, leaving = judged.kept(), judged.dropped()
            counts.kept.add(staying)
            for reason in set(leaving.column("reason")):
                counts.dropped.setdefault(reason, DocumentTally()).add(leaving.having("reason", reason))
            kept.write(staying)
            dropped.write(leaving)
    return _finish(place, shard, fingerprint, counts, started)


def _rewritten(before: Documents, after: Documents) -> int:
    """How many of the documents that stay have another text than they had."""
    if after.table.column("text") is before.table.column("text") and len(after) == len(before):
        return 0
    texts = zip(before.texts(), after.texts(), after.column("reason"), strict=False)
    return sum(reason is None and a != b for a, b, reason in texts)


def _finish(
    place: StageDirectory, shard: str, print_: str, counts: Counts, started: float, files: Sequence[Path] = ()
) -> int:
    """Mark a shard as done, once all else is on disk."""
    counts.seconds = time.process_time() - started
    facts = {"fingerprint": print_, "counts": asdict(counts)}
    write_mark(place.done(shard), [place.documents(shard), place.dropped(shard), *files], facts)
    return counts.given.bytes


def _remove_others(step: BuildStep) -> None:
    """Remove the files of shards that are to be made, or that the recipe no longer has; the marks go first."""
    place, stay = step.place, step.prints.keys() - set(step.pending)
    for path in [*place.path.glob("done/*.json"), *place.path.glob("d*/*.parquet"), *place.all_rejected()]:
        if path.stem not in stay:
            discard(path)


def _forget_others(build: Build, places: Iterable[StageDirectory]) -> None:
    """Remove stages that the recipe no longer has."""
    names = {place.name for place in places}
    for stage in build.stages():
        if stage.name not in names:
            discard(stage.path)


def _map(engine: DataEngine, task: Any, items: Sequence[Any], sizes: Sequence[float], title: str) -> None:
    """Run a task on every item with a progress bar over their sizes."""
    if not items:
        return
    with progress(title, sum(sizes), unit="bytes") as bar:
        for index, _ in engine.map(task, items):
            bar.advance(sizes[index])


def _tell(place: StageDirectory) -> None:
    counts = place.total()
    why = by_reason({reason: tally.documents for reason, tally in counts.dropped.items()}, 4)
    say(
        f"{place.name}: {counts.kept.documents:,} of {counts.given.documents:,} documents kept, "
        f"{counts.kept.bytes / 1e6:.1f} of {counts.given.bytes / 1e6:.1f} MB{f' ({why})' if why else ''}"
    )
