"""Documents kept away from training, to evaluate on."""

import functools
import json
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.documents import Documents
from leyden.data.hold_out_rule import border, draw
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus, Stage

HELD_OUT = "held out"
"""The reason that these documents leave with; a run evaluates on them."""


class HoldOut(Stage):
    """Take documents out by a hash of their text: the same ones whatever else is in the corpus.

    It belongs after deduplication, so that no copy of a document that is held out is trained on. At least one document
    is held out, and at least one is left. Of a single document, the end is held out, from a line break on if there is
    one.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["hold_out"] = "hold_out"
    share: float = Field(default=0.01, gt=0, lt=1)
    """Of the documents that come to this stage."""

    def prepare(self, corpus: Corpus) -> None:
        """Find the smallest and the largest number of all documents, which tell whether the share can be met."""
        found = [ends for _, ends in corpus.engine.map(_ends_of, list(corpus.shards.values())) if ends is not None]
        alone = bool(found) and min(found)[0] == max(last for _, last in found)
        bound = border(self.share, min(found)[0], max(last for _, last in found)) if found and not alone else self.share
        with atomic_file(_border_file(corpus.work)) as part:
            part.write_text(json.dumps({"border": bound, "alone": alone}), encoding="utf-8")

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Drop the chosen ones with the reason ``held out``."""
        path = _border_file(work)
        bound, alone = _read_border(path, path.stat().st_mtime_ns)
        if alone:
            return _cut(documents, self.share)
        return documents.drop([HELD_OUT if draw(text.encode()) < bound else None for text in documents.texts()])


def _border_file(work: Path) -> Path:
    return work / "border.json"


@functools.lru_cache(maxsize=1)
def _read_border(path: Path, changed_ns: int) -> tuple[float, bool]:
    """What ``prepare`` found; ``changed_ns`` tells a new file from an old."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["border"], found["alone"]


def _ends_of(path: Path) -> tuple[float, float] | None:
    """The smallest and the largest number of a shard's documents; None where it has none."""
    draws = [draw(text.encode()) for batch in read_batches(path) for text in batch.texts()]
    return (min(draws), max(draws)) if draws else None


def _cut(documents: Documents, share: float) -> Documents:
    """Hold out the end of a lone document, from the first line break in the part, if there is one."""
    if documents.table.column("messages").null_count < len(documents):
        raise UserError("There is one document, a dialogue, of which no part can be held out: give more documents.")
    texts = documents.texts()
    places = [_place(text, share) for text in texts]
    heads = documents.with_column("text", [text[:place] for text, place in zip(texts, places, strict=True)])
    tails = documents.with_column("text", [text[place:] for text, place in zip(texts, places, strict=True)])
    tails = tails.with_column("id", [f"{id}#end" for id in documents.column("id")])
    tails = tails.drop([HELD_OUT] * len(tails))
    return Documents(pa.concat_tables([heads.table, tails.table]))


def _place(text: str, share: float) -> int:
    if len(text) < 2:
        raise UserError("There is one document, of one character: give text to train on and to hold out.")
    place = min(max(int(len(text) * (1 - share)), 1), len(text) - 1)
    line_end = text.find("\n", place - 1, len(text) - 1)
    return line_end + 1 if line_end >= 0 else place
