"""Inspection of single documents of a build: what became of one, and what a stage dropped and why."""

import difflib
import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow.dataset

from leyden.core.errors import UserError, suggest
from leyden.data.builds.directory import Build, StageDirectory
from leyden.data.dedup.verdicts import read_verdicts
from leyden.data.documents import SCHEMA, Documents

_WORDS = re.compile(r"\S+\s*|\s+")
_CONTEXT = 6
"""Words around a change."""
_SHOWN_IDS, _ID_CHARACTERS = 5, 200
_COMPARED = 200_000
"""Characters of a text that are compared, so that no document takes minutes."""


@dataclass(frozen=True)
class Span:
    """A run of words in a comparison of two texts.

    Attributes:
        kind: ``same``, ``gone`` (of the first text alone) or ``new`` (of the second alone).
        text: the words, with the white space between them.
    """

    kind: Literal["same", "gone", "new"]
    text: str


@dataclass(frozen=True)
class InspectedStep:
    """What one stage did to a document.

    Attributes:
        stage: ``NN-kind``.
        documents: the document as it left the stage: a batch of one.
        dropped: whether it left for good; then the batch has the reason.
        changes: of its text since the stage before; empty where nothing changed.
    """

    stage: str
    documents: Documents
    dropped: bool
    changes: tuple[Span, ...]


def story(build: Build, id: str) -> list[InspectedStep]:
    """What became of the document ``id``, stage by stage, up to where it was dropped or to the end.

    Raises:
        UserError: no document has that id; the nearest are named.
    """
    steps: list[InspectedStep] = []
    text: str | None = None
    for stage in build.stages():
        found, dropped = _find(stage, id)
        if found is None:
            break
        new = found.texts()[0]
        changes = () if text is None or new == text else tuple(compare(text, new))
        steps.append(InspectedStep(stage.name, found, dropped, changes))
        text = new
        if dropped:
            break
    if not steps:
        raise UserError(f"No document of this build has the id {id!r}{_alike(id, _ids(build.stages()[0]))}.")
    return steps


def _alike(id: str, ids: Iterable[str]) -> str:
    """The ids that come nearest: that contain the one given, or begin like it."""

    def likeness(other: str) -> tuple[bool, int]:
        pairs = enumerate(zip(id, other, strict=False))
        return id in other, next((place for place, (a, b) in pairs if a != b), min(len(id), len(other)))

    near = [other for other in heapq.nlargest(_SHOWN_IDS, ids, key=likeness) if any(likeness(other))]
    if not near:
        return "; `leyden data inspect DIR` shows some that were dropped"
    return f"; near it are: {', '.join(other[:_ID_CHARACTERS] for other in near)}"


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


@dataclass(frozen=True)
class Cluster:
    """Documents that one survivor stands for.

    Attributes:
        stage: ``NN-kind``, where they were found.
        survivor: the id of the one that was kept there.
        others: the ids of those dropped, with the similarity where it was verified.
    """

    stage: str
    survivor: str
    others: tuple[tuple[str, float | None], ...]


def clusters(build: Build) -> list[Cluster]:
    """The clusters of duplicates and near-duplicates of every stage that made some, the largest first."""
    found = []
    for stage in build.stages():
        if not (stage.work / "verdicts").is_dir() or not stage.prepared.exists():
            continue
        stage.check_work()
        members: dict[tuple[int, str], list[tuple[str, float | None]]] = {}
        for shard in stage.shards():
            for row in read_verdicts(stage.work, shard).to_pylist():
                if row["number"] != row["survivor_number"]:
                    key = row["survivor_number"], row["survivor"]  # ids can repeat, numbers do not
                    members.setdefault(key, []).append((row["id"], row["jaccard"]))
        found += [Cluster(stage.name, survivor, tuple(sorted(others))) for (_, survivor), others in members.items()]
    return sorted(found, key=lambda cluster: (-len(cluster.others), cluster.stage, cluster.survivor))


def text_of(build: Build, stage: str, id: str) -> str:
    """The text of a document as it was when it came to a stage; empty where it was not there."""
    places = build.stages()
    before = places[[place.name for place in places].index(stage) - 1]
    found, _ = _find(before, id)
    return "" if found is None else found.texts()[0]


def _find(stage: StageDirectory, id: str) -> tuple[Documents | None, bool]:
    for dropped in (False, True):
        files = [str(path) for path in stage.files(dropped=dropped)]
        if not files:
            continue
        dataset = pyarrow.dataset.dataset(files, format="parquet", schema=SCHEMA)
        table = dataset.to_table(filter=pyarrow.dataset.field("id") == id)
        if table.num_rows:
            return Documents(table.slice(0, 1)), dropped
    return None, False


def _ids(stage: StageDirectory) -> Iterator[str]:
    for batch in stage.read():
        yield from batch.column("id")


def compare(before: str, after: str) -> list[Span]:
    """What changed between two texts, word by word, each change with a few words around it."""
    a, b = (_WORDS.findall(text[:_COMPARED]) for text in (before, after))
    spans: list[Span] = []
    for group in difflib.SequenceMatcher(None, a, b).get_grouped_opcodes(_CONTEXT):
        spans += [Span("same", " … ")] if spans else []
        for kind, a_start, a_end, b_start, b_end in group:
            if kind == "equal":
                spans.append(Span("same", "".join(a[a_start:a_end])))
                continue
            changed = (Span("gone", "".join(a[a_start:a_end])), Span("new", "".join(b[b_start:b_end])))
            spans += [span for span in changed if span.text]
    return spans
