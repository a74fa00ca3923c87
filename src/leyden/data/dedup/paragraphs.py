"""Lines or paragraphs that many documents repeat, as CCNet (Wenzek et al. 2019) and Dolma (Soldaini et al. 2024) drop.

Menus, licences, cookie notices: a piece that occurs more often in the corpus than allowed is removed wherever it is
one too many. Which occurrences stay is decided by hashes of what the documents are, not by the order they come in.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from leyden.data.dedup.changes import apply_changes, count_changes, offsets_by_rows, write_spans
from leyden.data.dedup.exact import hash_texts
from leyden.data.dedup.gathering import identities
from leyden.data.dedup.normalisation import folded
from leyden.data.dedup.runs import Runs, file_name, load_array, mark_of, save_array, write_run
from leyden.data.dedup.windows import mix
from leyden.data.documents import Documents, pc
from leyden.data.marks import map_missing
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus, Stage

_BORDERS = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n\s*\n")}
"""What ends a piece, and belongs to it: the pieces of a text, in order, are all of it."""
_RECORD = np.dtype([("check", "<u8"), ("rank", "<u8"), ("row", "<u4"), ("begin", "<i8"), ("end", "<i8")])


class Paragraphs(Stage):
    """Remove the lines or paragraphs that the corpus repeats, and the documents that little is left of.

    Pieces are equal if they differ at most in case and in the kind and amount of white space, by a 128-bit hash: a line
    that differs from another in a mark, a sign or a digit is never cut for it. Of a piece that occurs too often, those
    occurrences stay whose document's identity (id, text, address, metadata) and place have the greatest hash. Messages
    of a nested document are parts of it; an emptied message stays in its place.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["paragraphs"] = "paragraphs"
    unit: Literal["line", "paragraph"] = "line"
    """What is a piece: a line (CCNet), or lines up to an empty one (Dolma)."""
    occurrences: int = Field(1, ge=1)
    """How often a piece may stay in the corpus (CCNet and Dolma: 1)."""
    min_bytes: int = Field(20, ge=1)
    """Shorter pieces, in UTF-8 bytes without surplus white space, are never removed: braces, list marks, "Yes."."""
    min_left_characters: int = Field(100, ge=0)
    """A document is dropped if something was removed and what is left is shorter."""
    memory_bytes: int = Field(1 << 30, ge=1 << 16)
    """What one process may use for a partition of hashes."""

    def prepare(self, corpus: Corpus) -> None:
        """Hash every piece, count by partitions, note for every shard what goes."""
        if not corpus.shards:
            return
        runs = [corpus.scratch / "pieces" / file_name(name) for name in corpus.shards]
        given = [(mark_of(run), (path, run)) for run, path in zip(runs, corpus.shards.values(), strict=True)]
        map_missing(corpus.engine, functools.partial(_hash_pieces, self), given, "hashing pieces")
        pieces = Runs(tuple(runs))
        ranges = pieces.ranges(self.memory_bytes)
        lost = [corpus.scratch / f"lost-{len(ranges)}" / str(index) for index in range(len(ranges))]
        given = [(mark_of(run), (run, keys)) for run, keys in zip(lost, ranges, strict=True)]
        offsets = offsets_by_rows(corpus.shards.values())
        choose = functools.partial(_choose, self.occurrences, pieces, offsets)
        map_missing(corpus.engine, choose, given, "counting pieces")
        write = functools.partial(_write_changes, corpus.work, Runs(tuple(lost)), offsets)
        shards = zip(corpus.shards, runs, strict=True)
        for _ in corpus.engine.map(write, [(index, name, run) for index, (name, run) in enumerate(shards)]):
            pass

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Remove the pieces that go, and drop the documents that too little is left of."""
        return apply_changes(documents, shard, work, f"repeated {self.unit}s", self.min_left_characters)

    def report(self, work: Path) -> dict[str, Any]:
        """How many documents were changed, and what was removed."""
        return count_changes(work)


def _hash_pieces(stage: Paragraphs, item: tuple[Path, Path]) -> list[Path]:
    """A run of a shard's pieces, no more of each than may stay; the others are lost already."""
    path, run = item
    keys, records, row = [np.zeros(0, np.uint64)], [np.zeros(0, _RECORD)], 0
    for documents in read_batches(path):
        key, record = _pieces_of(stage, documents)
        record["row"] += row
        row += len(documents)
        keys.append(key)
        records.append(record)
    key, record = np.concatenate(keys), np.concatenate(records)
    stay = _staying(key, record, stage.occurrences)
    return [save_array(_lost_inside(run), record[~stay]), *write_run(run, key[stay], record[stay])]


def _pieces_of(stage: Paragraphs, documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Half of the hash of each piece of a batch that is long enough, and its record."""
    pieces, places = [], []
    for row, text in enumerate(documents.texts()):
        begin = 0
        for end in itertools.chain((border.end() for border in _BORDERS[stage.unit].finditer(text)), [len(text)]):
            pieces.append(text[begin:end])
            places.append((row, begin, end))
            begin = end
    words = folded(pa.array(pieces, pa.large_string()))
    long = pc.greater_equal(pc.binary_length(words), stage.min_bytes)
    place = np.array(places, np.int64).reshape(-1, 3)[long.to_numpy(zero_copy_only=False)]
    key, check = hash_texts(words.filter(long), "none")
    owners = identities(documents)
    record = np.zeros(len(place), _RECORD)
    record["check"] = check
    record["row"], record["begin"], record["end"] = place.T
    record["rank"] = mix(owners[place[:, 0]], place[:, 1].astype(np.uint64))
    return key, record


def _staying(key: np.ndarray, record: np.ndarray, occurrences: int) -> np.ndarray:
    """[N] bool, the ``occurrences`` of each piece that rank first."""
    order = np.lexsort((~record["rank"], record["check"], key))
    key, check = key[order], record["check"][order]
    fresh = np.append(True, (key[1:] != key[:-1]) | (check[1:] != check[:-1]))[: len(key)]
    begins = np.flatnonzero(fresh)
    nth = np.arange(len(key)) - np.repeat(begins, np.diff(np.append(begins, len(key))))
    stay = np.zeros(len(key), bool)
    stay[order] = nth < occurrences
    return stay


def _choose(occurrences: int, pieces: Runs, offsets: np.ndarray, item: tuple[Path, tuple[int, int]]) -> list[Path]:
    """Of a partition, a run of the pieces that go, by the numbers of their documents."""
    run, (low, high) = item
    key, record, source = pieces.gather(low, high)
    go = ~_staying(key, record, occurrences)
    return write_run(run, (offsets[source[go]] + record["row"][go]).astype(np.uint64), record[go])


def _write_changes(work: Path, lost: Runs, offsets: np.ndarray, item: tuple[int, str, Path]) -> None:
    index, shard, run = item
    _, across, _ = lost.gather(int(offsets[index]), int(offsets[index + 1]))
    gone = np.concatenate([across, load_array(_lost_inside(run))])
    write_spans(work, shard, gone["row"], gone["begin"], gone["end"])


def _lost_inside(run: Path) -> Path:
    """The file of the pieces that go because their own shard has too many."""
    return run.with_name(f"{run.name}.lost.npy")
