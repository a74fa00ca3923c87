"""Looking at single documents of a build: what became of one, what a stage dropped and why."""

import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.dataset

from leyden.core.errors import UserError, suggest
from leyden.data.build.directory import Build, StageDirectory
from leyden.data.documents import SCHEMA, Documents


@dataclass(frozen=True)
class Step:
    """What one stage did to a document.

    Attributes:
        stage: ``NN-kind``.
        documents: the document as it left the stage: a batch of one.
        dropped: whether it left for good; then the batch has the reason.
        changes: lines of a unified diff of its text since the stage before; empty where nothing changed.
    """

    stage: str
    documents: Documents
    dropped: bool
    changes: tuple[str, ...]


def story(build: Build, id: str) -> list[Step]:
    """What became of the document ``id``, stage by stage, up to where it was dropped or to the end.

    Raises:
        UserError: no document has that id; some that begin alike are named.
    """
    steps: list[Step] = []
    text: str | None = None
    for stage in build.stages():
        found, dropped = _find(stage, id)
        if found is None:
            break
        new = found.texts()[0]
        changes = () if text is None or new == text else tuple(_diff(text, new))
        steps.append(Step(stage.name, found, dropped, changes))
        text = new
        if dropped:
            break
    if not steps:
        near = itertools.islice(_ids(build.stages()[0]), 10_000)
        raise UserError(f"No document of this build has the id {id!r}{suggest(id, list(near)[:200])}.")
    return steps


def left_at(build: Build, stage: str | None = None, reason: str | None = None) -> Iterator[tuple[str, Documents]]:
    """The documents that stages dropped, a batch at a time, each with its stage's name.

    Args:
        build: the build.
        stage: only this one, by its kind or its ``NN-kind``.
        reason: only reasons that contain this.

    Raises:
        UserError: no such stage.
    """
    stages = build.stages()[1:]
    if stage is not None:
        chosen = [place for place in stages if stage in (place.name, place.kind)]
        if not chosen:
            raise UserError(f"This build has no stage '{stage}'{suggest(stage, [place.name for place in stages])}.")
        stages = chosen
    for place in stages:
        for batch in place.read(dropped=True):
            found = batch if reason is None else batch.containing("reason", reason)
            if len(found):
                yield place.name, found


def _find(stage: StageDirectory, id: str) -> tuple[Documents | None, bool]:
    for folder, dropped in (("documents", False), ("dropped", True)):
        if not any((stage.path / folder).glob("*.parquet")):
            continue
        dataset = pyarrow.dataset.dataset(stage.path / folder, format="parquet", schema=SCHEMA)
        table = dataset.to_table(filter=pyarrow.dataset.field("id") == id)
        if table.num_rows:
            return Documents(table.slice(0, 1)), dropped
    return None, False


def _ids(stage: StageDirectory) -> Iterator[str]:
    for batch in stage.read():
        yield from batch.column("id")


def _diff(before: str, after: str) -> Iterator[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    return itertools.islice(lines, 2, None)  # without the names of the files
