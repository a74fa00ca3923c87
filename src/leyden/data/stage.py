"""What a stage of a build is: settings, and a pure function over batches of documents.

A stage that judges or rewrites each document by itself has :meth:`Stage.apply` alone. One that must see the whole
corpus first (deduplication, a classifier) also has :meth:`Stage.prepare`, which leaves what it learnt in files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.panics import panics_are_user_errors
from leyden.data.documents import Documents
from leyden.data.engine import DataEngine
from leyden.data.parquet import read_batches

if TYPE_CHECKING:  # matplotlib is for reports alone
    from leyden.core.page import Plot
    from leyden.data.label.language_model import OpenModel


@dataclass(frozen=True)
class Corpus:
    """The documents that a stage is given, all of them.

    Attributes:
        shards: the name of each shard, and its Parquet file. The order and the borders of shards mean nothing: a stage
            must give the same documents however they are cut.
        work: a directory of the stage's own, for what it learns. What it finds there of an interrupted run was written
            by the same settings on the same shards; :func:`leyden.data.marks.map_missing` goes on with what is whole.
        engine: runs a task on every shard.
        open_model: makes a :class:`~leyden.data.label.LanguageModel` of a local model's path; handed in by who runs the
            build, since models are above ``data``.
    """

    shards: Mapping[str, Path]
    work: Path
    engine: DataEngine
    open_model: "OpenModel | None" = None

    @property
    def scratch(self) -> Path:
        """A directory in ``work`` for what it must hold outside memory until it is prepared; then it is removed."""
        return self.work / "scratch"

    def batches(self) -> Iterator[Documents]:
        """Every document, a batch at a time, shard by shard."""
        for path in self.shards.values():
            yield from read_batches(path)


class _PanicError(UserError):
    """A library written in Rust panicked."""


class Stage(Config):
    """One step over documents; subclasses have ``kind: Literal["..."] = "..."``, their settings, and ``apply``."""

    VERSION: ClassVar[int] = 1
    """Raised when the same settings give other results than before, so that old results are made again."""
    WHOLE_CORPUS: ClassVar[bool] = False
    """Whether what becomes of one document depends on the others: then ``prepare`` runs before ``apply``."""

    @property
    def name(self) -> str:
        """Its kind."""
        return type(self).model_fields["kind"].default

    def files(self) -> tuple[Path, ...]:
        """Files that the result depends on beside the documents: word lists, evaluation sets, models."""
        return ()

    def prepare(self, corpus: Corpus) -> None:
        """See the whole corpus, and leave what ``apply`` needs in ``corpus.work``; runs before any ``apply``."""

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """The same documents, in the same order, with reasons where they are dropped, scores, or other texts.

        Args:
            documents: a batch, none of it dropped yet.
            shard: the name of the shard that it is from.
            work: what ``prepare`` wrote to.
        """
        raise NotImplementedError

    def apply_safely(self, documents: Documents, shard: str, work: Path) -> Documents:
        """What :meth:`apply` gives; a document on which a library panics is dropped with that as its reason."""
        try:
            with panics_are_user_errors("", _PanicError):
                return self.apply(documents, shard, work)
        except _PanicError:
            if len(documents) <= 1:
                return documents.drop([f"{self.name}: a library gave up"] * len(documents), ["it panicked"])
        middle = len(documents) // 2
        halves = documents.piece(0, middle), documents.piece(middle, len(documents))
        return Documents(pa.concat_tables([self.apply_safely(half, shard, work).table for half in halves]))

    def summary(self, work: Path) -> str:
        """What is said in the terminal once the stage is done, beside its counts: one line, or nothing."""
        return ""

    def report(self, work: Path) -> dict[str, object]:
        """What the build's report should say of this stage beside its counts; values that JSON can hold."""
        return {}

    def plots(self, work: Path) -> "list[Plot]":
        """What the report should draw of this stage."""
        return []
