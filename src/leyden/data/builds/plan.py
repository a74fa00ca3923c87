"""The remaining work of a build: shards of stages that are missing, damaged, or made with other settings.

The fingerprints of all shards follow from the recipe and the sources alone, so this is known before anything is done.
Files are compared with their hashes where this run of the build will read them: the first and the last stage, and what
was dropped, for tokens and report; between them, the documents that a stage is to be run on.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from leyden.core.errors import UserError
from leyden.data.builds.directory import READ, StageDirectory
from leyden.data.builds.recipe import BuildRecipe
from leyden.data.builds.rejects import by_reason
from leyden.data.documents import Reject
from leyden.data.marks import read_mark, side_by_side, tell_damage
from leyden.data.readers import Piece, SourceSettings, plan_shards
from leyden.data.stage import Stage


@dataclass(frozen=True)
class BuildStep:
    """One stage of a build, or the reading of its sources.

    Attributes:
        place: where its files are.
        prints: the fingerprint of each shard: of all that it is made by and from.
        stage: None where the sources are read.
        whole: the fingerprint of the stage on the whole corpus.
        sources: of each shard its settings and pieces, where the sources are read.
        skipped: of each source what was found in folders and is not read, where the sources are read.
        pending: the shards that are to be made.
        prepares: whether the stage is to see the whole corpus.
    """

    place: StageDirectory
    prints: Mapping[str, str]
    stage: Stage | None = None
    whole: str = ""
    sources: Mapping[str, tuple[SourceSettings, tuple[Piece, ...]]] = field(default_factory=dict)
    skipped: Mapping[str, Sequence[Reject]] = field(default_factory=dict)
    pending: tuple[str, ...] = ()
    prepares: bool = False


def plan_steps(recipe: BuildRecipe, directory: Path) -> list[BuildStep]:
    """The steps of a build, and what is left of each.

    Raises:
        UserError: the sources hold nothing that is read, or a file that a stage needs is missing.
    """
    steps = [_reading(recipe, directory / "stages" / f"00-{READ}")]
    for number, stage in enumerate(recipe.stage, 1):
        given = steps[-1].prints
        settings = fingerprint(
            [type(stage).__name__, str(stage.VERSION), stage.model_dump_json(), *map(digest, stage.files())]
        )
        whole = fingerprint([settings, *(f"{name} {given[name]}" for name in sorted(given))])
        prints = {name: fingerprint([whole if stage.WHOLE_CORPUS else settings, given[name]]) for name in given}
        place = StageDirectory(directory / "stages" / f"{number:02d}-{stage.name}")
        steps.append(BuildStep(place, prints, stage, whole))
    return _with_what_is_left(steps)


def _reading(recipe: BuildRecipe, place: Path) -> BuildStep:
    skipped: dict[str, list[Reject]] = {source.name: [] for source in recipe.source}
    sources = {
        f"{source.name}-{number:05d}": (source, tuple(pieces))
        for source in recipe.source
        for number, pieces in enumerate(plan_shards(source, recipe.build.shard_bytes, skipped[source.name]))
    }
    if not sources:
        found = by_reason(reject.reason for rejects in skipped.values() for reject in rejects)
        raise UserError(f"The sources of this recipe hold no file that is read{found and f': {found}'}.")
    prints = {
        name: fingerprint([source.model_dump_json(), *map(repr, pieces), *_versions(pieces)])
        for name, (source, pieces) in sources.items()
    }
    return BuildStep(StageDirectory(place), prints, sources=sources, skipped=skipped)


def _versions(pieces: Iterable[Piece]) -> Iterator[str]:
    """What tells whether a file is as it was: its size and when it was written."""
    for piece in pieces:
        try:
            status = piece.source.path.stat()
            yield f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:  # it has gone since the sources were searched; reading it will say so
            yield f"{error.strerror}"


def _with_what_is_left(steps: Sequence[BuildStep]) -> list[BuildStep]:
    """From the last stage to the first, since what one has left to do says what it reads of the one before."""
    found: list[BuildStep] = []
    read: Collection[str] = steps[-1].prints  # for tokens and report
    for step in reversed(steps):
        pending = _pending(step, step.prints if step is steps[0] else read)
        prepares = step.stage is not None and step.stage.WHOLE_CORPUS and not _is_prepared(step)
        found.append(replace(step, pending=pending, prepares=prepares))
        read = step.prints if prepares else pending
    return found[::-1]


def _pending(step: BuildStep, read: Collection[str]) -> tuple[str, ...]:
    """The shards that are to be made; the documents of those that are not in ``read`` are taken for what they were."""
    names = sorted(step.prints)
    marks = [step.place.mark(name, step.prints[name]) for name in names]
    unread = [() if name in read else (step.place.documents(name),) for name in names]
    pairs = list(zip(marks, unread, strict=True))
    faults = side_by_side(lambda pair: pair[0] and pair[0].fault(unread=pair[1]), pairs)
    tell_damage(fault for fault in faults if fault)
    return tuple(name for name, mark, fault in zip(names, marks, faults, strict=True) if mark is None or fault)


def _is_prepared(step: BuildStep) -> bool:
    mark = read_mark(step.place.prepared)
    if mark is None or mark.facts.get("fingerprint") != step.whole:
        return False
    fault = mark.fault()
    tell_damage([fault] if fault else [])
    return fault is None


def fingerprint(parts: Iterable[str]) -> str:
    """A hash of several strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def digest(path: Path) -> str:
    """Of a file's content, or of all the files of a folder."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return fingerprint([f"{file.relative_to(path)} {digest(file)}" for file in files])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
