"""Long substrings that occur more than once (Lee et al. 2022, arXiv 2107.06499).

Every window of ``length`` units (words, or bytes) is hashed; windows with equal hashes meet in partitions on disk, and
are compared unit by unit, so that a collision never removes anything. Of equal windows one stays, the others go: what
is cut from a document is the union of its windows that go. A suffix array would say the same and need the corpus in
memory, or a pass over it in a compiled program of its own; here some 25 bytes a unit are on disk meanwhile.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from leyden.data.dedup.changes import apply_changes, count_changes, offsets_by_rows, write_spans
from leyden.data.dedup.gathering import identities
from leyden.data.dedup.runs import Runs, file_name, load_array, mark_of, save_array, write_run
from leyden.data.dedup.windows import hash_strings, window_hashes
from leyden.data.documents import Documents
from leyden.data.marks import map_missing
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus, Stage

_WORD = re.compile(r"\S+")
_RECORD = np.dtype([("row", "<u4"), ("start", "<u4")])
_WINDOWS_AT_ONCE = 1 << 21
"""Windows in a run: what a task sorts in memory."""
_UNITS_COMPARED_AT_ONCE = 1 << 22


class Substrings(Stage):
    """Cut substrings that occur elsewhere out of all documents but one, and drop documents that little is left of.

    The occurrence that stays is in the document whose identity (id, text, address, metadata) has the greatest hash, and
    there the first: the same whatever
    the order and the borders of shards. Of a text that repeats itself, one period stays. A span that goes can take
    with it the end of another that stays here; every window of it is still whole elsewhere.
    """

    VERSION: ClassVar[int] = 2
    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["substrings"] = "substrings"
    unit: Literal["words", "bytes"] = "words"
    """``words``: what stands between white space, which itself does not count; ``bytes``: of UTF-8, and cuts are made
    between characters. Bytes are for text without spaces, and cost six times as much."""
    length: int = Field(50, ge=2, le=1 << 16)
    """Units of the shortest substring that goes (Lee et al.: 50 tokens, which are some 40 words or 200 bytes)."""
    min_left_characters: int = Field(100, ge=0)
    """A document is dropped if something was cut and what is left is shorter."""
    memory_bytes: int = Field(1 << 30, ge=1 << 16)
    """What one process may use for a partition of windows, beside some 300 MB to hash and compare."""

    def prepare(self, corpus: Corpus) -> None:
        """Hash every window, bring equal ones together, compare them, note for every shard what goes."""
        if not corpus.shards:
            return
        places = [_Place(corpus.scratch / "windows", name, path) for name, path in corpus.shards.items()]
        hashing = [(place["done"], place) for place in places]
        map_missing(corpus.engine, functools.partial(_hash_windows, self), hashing, "hashing windows")
        runs = [(run, index) for index, place in enumerate(places) for run in place.runs()]
        windows = Runs(tuple(run for run, _ in runs))
        ranges = windows.ranges(self.memory_bytes)
        gone = [corpus.scratch / f"gone-{len(ranges)}" / str(index) for index in range(len(ranges))]
        texts = _Texts(tuple(places), offsets_by_rows(corpus.shards.values()))
        choose = functools.partial(_choose, self.length, windows, np.array([index for _, index in runs]), texts)
        given = [(mark_of(run), (run, keys)) for run, keys in zip(gone, ranges, strict=True)]
        map_missing(corpus.engine, choose, given, "comparing windows")
        write = functools.partial(_write_changes, self, corpus.work, Runs(tuple(gone)), texts)
        for _ in corpus.engine.map(write, list(range(len(places)))):
            pass

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """Cut what occurs elsewhere, and drop the documents that too little is left of."""
        return apply_changes(documents, shard, work, "repeated substrings", self.min_left_characters)

    def report(self, work: Path) -> dict[str, Any]:
        """How many documents were changed, and what was removed."""
        return count_changes(work)


class _Place:
    """Where the units, the windows and the identities of a shard are."""

    def __init__(self, directory: Path, name: str, documents: Path) -> None:
        self.directory, self.name, self.documents = directory, name, documents

    def __getitem__(self, ending: str) -> Path:
        return self.directory / f"{file_name(self.name)}.{ending}"

    def runs(self) -> list[Path]:
        return [self[str(index)] for index in range(int(load_array(self["runs.npy"])[0]))]


class _Texts:
    """The units of all documents, by the numbers of documents.

    Args:
        places: of the shards.
        offsets: [S+1] int64, the number of each shard's first document.
    """

    def __init__(self, places: tuple[_Place, ...], offsets: np.ndarray) -> None:
        self.places, self.offsets = places, offsets

    def shard_of(self, documents: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.offsets, documents, side="right") - 1

    def identities(self, documents: np.ndarray) -> np.ndarray:
        """[N] uint64, those of the documents (:func:`leyden.data.dedup.gathering.identities`)."""
        result, shards = np.zeros(len(documents), np.uint64), self.shard_of(documents)
        for shard in np.unique(shards):
            here = shards == shard
            result[here] = load_array(self.places[shard]["identities.npy"])[documents[here] - self.offsets[shard]]
        return result

    def windows(self, documents: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """[N, length], the units of some windows."""
        shards, parts, order = self.shard_of(documents), [], []
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            units, first = (load_array(self.places[shard][name]) for name in ("units.npy", "starts.npy"))
            begin = first[documents[here] - self.offsets[shard]] + starts[here]
            parts.append(units[begin[:, None] + np.arange(length)])
            order.append(here)
        result = np.concatenate(parts)
        result[np.concatenate(order)] = result.copy()
        return result

    def equal(
        self, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], length: int
    ) -> np.ndarray:
        """[N] bool, whether windows, each given by [N] documents and [N] starts, have the same units."""
        step = max(1, _UNITS_COMPARED_AT_ONCE // length)
        found = [np.zeros(0, bool)]
        for begin in range(0, len(left[0]), step):
            one, other = (
                self.windows(d[begin : begin + step], s[begin : begin + step], length) for d, s in (left, right)
            )
            found.append((one == other).all(axis=1))
        return np.concatenate(found)


def _hash_windows(stage: Substrings, place: _Place) -> list[Path]:
    units, borders = [np.zeros(0, np.uint8 if stage.unit == "bytes" else np.uint64)], [np.zeros(1, np.int64)]
    owners = [np.zeros(0, np.uint64)]
    for documents in read_batches(place.documents):
        of_batch, lengths = _units(documents.texts(), stage.unit)
        units.append(of_batch)
        borders.append(np.cumsum(lengths) + borders[-1][-1])
        owners.append(identities(documents))
    unit, border = np.concatenate(units), np.concatenate(borders)
    arrays = {"units": unit, "starts": border, "identities": np.concatenate(owners)}
    files = [save_array(place[f"{name}.npy"], array) for name, array in arrays.items()]
    count = 0
    for segments in _segments(np.maximum(np.diff(border) - stage.length + 1, 0)):
        rows, begins, counts = np.array(segments, np.int64).T
        records = np.zeros(counts.sum(), _RECORD)
        records["row"] = np.repeat(rows, counts)
        records["start"] = np.arange(len(records)) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        places = border[records["row"]] + records["start"]
        here = unit[places[0] : places[-1] + stage.length].astype(np.uint64)
        files += write_run(place[str(count)], window_hashes(here, stage.length)[places - places[0]], records)
        count += 1
    return [*files, save_array(place["runs.npy"], np.array([count]))]


def _units(texts: Sequence[str], unit: str) -> tuple[np.ndarray, list[int]]:
    """The units of all texts, and how many each has."""
    if unit == "bytes":
        encoded = [text.encode() for text in texts]
        return np.frombuffer(b"".join(encoded), np.uint8), [len(text) for text in encoded]
    words = [text.split() for text in texts]
    flat = pa.array([word for of_text in words for word in of_text], pa.large_string())
    return hash_strings(flat), [len(of_text) for of_text in words]


def _segments(windows: np.ndarray) -> Iterator[list[tuple[int, int, int]]]:
    """Lists of (document, first window, windows), of about ``_WINDOWS_AT_ONCE`` together; a long document is cut."""
    segments: list[tuple[int, int, int]] = []
    total = 0
    for row, number in enumerate(windows.tolist()):
        for begin in range(0, number, _WINDOWS_AT_ONCE):
            count = min(_WINDOWS_AT_ONCE, number - begin)
            if segments and total + count > _WINDOWS_AT_ONCE:
                yield segments
                segments, total = [], 0
            segments.append((row, begin, count))
            total += count
    if segments:
        yield segments


def _choose(
    length: int, windows: Runs, shards: np.ndarray, texts: _Texts, item: tuple[Path, tuple[int, int]]
) -> list[Path]:
    """Of a partition, a run of the windows that go, by the numbers of their documents."""
    run, (low, high) = item
    key, record, source = windows.gather(low, high)
    repeated = _repeated(key)
    key, record, source = key[repeated], record[repeated], source[repeated]
    if not len(key):
        return write_run(run, np.zeros(0, np.uint64), np.zeros(0, _RECORD))
    document, start = texts.offsets[shards[source]] + record["row"], record["start"].astype(np.int64)
    order = np.lexsort((start, ~texts.identities(document), key))
    key, document, start, record = key[order], document[order], start[order], record[order]
    fresh = np.append(True, key[1:] != key[:-1])
    best = np.flatnonzero(fresh)[np.cumsum(fresh) - 1]
    others = np.flatnonzero(~fresh)
    stays = best[others]
    same = texts.equal((document[others], start[others]), (document[stays], start[stays]), length)
    gone = others[same]
    return write_run(run, document[gone].astype(np.uint64), record[gone])


def _repeated(key: np.ndarray) -> np.ndarray:
    """[N] bool, the keys that occur more than once."""
    order = np.argsort(key, kind="stable")
    same = key[order][1:] == key[order][:-1]
    result = np.zeros(len(key), bool)
    result[order] = np.append(False, same)[: len(key)] | np.append(same, False)[: len(key)]
    return result


def _write_changes(stage: Substrings, work: Path, gone: Runs, texts: _Texts, index: int) -> None:
    place, offsets = texts.places[index], texts.offsets
    _, record, _ = gone.gather(int(offsets[index]), int(offsets[index + 1]))
    record = record[np.lexsort((record["start"], record["row"]))]
    rows, begins, ends, row = [], [], [], 0
    for documents in read_batches(place.documents):
        low, high = np.searchsorted(record["row"], [row, row + len(documents)])
        texts_ = documents.texts() if low < high else []
        while low < high:
            number = int(record["row"][low])
            end = int(np.searchsorted(record["row"], number, side="right"))
            found = _characters(texts_[number - row], record["start"][low:end].astype(np.int64), stage)
            rows.append(np.full(len(found[0]), number))
            begins.append(found[0])
            ends.append(found[1])
            low = end
        row += len(documents)
    spans = (np.concatenate([np.zeros(0, np.int64), *values]) for values in (rows, begins, ends))
    write_spans(work, place.name, *spans)


def _characters(text: str, starts: np.ndarray, stage: Substrings) -> tuple[np.ndarray, np.ndarray]:
    """The spans of characters that windows at ``starts`` [N] (sorted) cover, those that touch made one."""
    fresh = np.append(True, starts[1:] > starts[:-1] + stage.length)
    begin, end = starts[fresh], starts[np.append(fresh[1:], True)] + stage.length
    if stage.unit == "words":
        words = np.array([match.span() for match in _WORD.finditer(text)])
        return words[begin, 0], words[end - 1, 1]
    encoded = np.frombuffer(text.encode(), np.uint8)
    opens = (encoded & 0xC0) != 0x80  # the first byte of a character
    before = np.append(0, np.cumsum(opens))
    inside = np.append(~opens, False)[end]  # a character that is cut stays
    return before[begin], np.maximum(before[end] - inside, before[begin])
