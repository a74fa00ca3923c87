"""Spans to be cut from documents: one file a shard, which ``apply`` reads."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leyden.core.files import atomic_file
from leyden.data.dedup.runs import file_name
from leyden.data.documents import Documents

_SPANS = pa.schema([("row", pa.int64()), ("begins", pa.list_(pa.int64())), ("ends", pa.list_(pa.int64()))])
"""One row a changed document: its row in its shard, and the spans of characters of its text that go,
as ``Documents.texts`` gives it, sorted and apart."""
_SEPARATOR = len("\n\n")  # what Documents.texts puts between the contents of messages


def offsets_by_rows(paths: Iterable[Path]) -> np.ndarray:
    """[S+1] int64, the numbers of the first documents of Parquet files if all are numbered through."""
    counts = []
    for path in paths:
        with pq.ParquetFile(path) as file:
            counts.append(file.metadata.num_rows)
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def write_spans(work: Path, shard: str, rows: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
    """Write what goes from the documents of a shard.

    Args:
        work: of the stage; ``changes/`` is made in it.
        shard: its name.
        rows: [N] integers, the document of each span.
        begins, ends: [N] integers, in characters; spans may overlap.
    """
    rows, begins, ends = _merged(rows, begins, ends)
    changed, first = np.unique(rows, return_index=True)
    borders = pa.array(np.append(first, len(rows)), pa.int32())
    lists = [pa.ListArray.from_arrays(borders, pa.array(values, pa.int64())) for values in (begins, ends)]
    table = pa.table([pa.array(changed, pa.int64()), *lists], schema=_SPANS)
    with atomic_file(_path(work, shard)) as part:
        pq.write_table(table, part)


def apply_changes(documents: Documents, shard: str, work: Path, what: str, min_left_characters: int) -> Documents:
    """Cut the spans out, and drop the documents that are then shorter than ``min_left_characters``.

    Args:
        documents: a batch of the shard.
        shard: its name.
        work: of the stage.
        what: is removed, in the plural, for the reason.
        min_left_characters: what a changed document must keep; an emptied one is always dropped.
    """
    path = _path(work, shard)
    changes = _changes(path, path.stat().st_mtime_ns)
    rows = documents.rows()
    spans = [changes.get(row) for row in range(rows.start, rows.stop)]
    if not any(spans):
        return documents
    texts, messages = documents.column("text"), documents.column("messages")
    reasons: list[str | None] = [None] * len(documents)
    details: list[str | None] = [None] * len(documents)
    for row, cut in enumerate(spans):
        if cut is None:
            continue
        turns = messages[row]
        parts = [texts[row]] if turns is None else [turn["content"] for turn in turns]
        left = _cut(parts, cut)
        if turns is None:
            texts[row] = left[0]
        else:
            messages[row] = [{**turn, "content": content} for turn, content in zip(turns, left, strict=True)]
        kept = sum(map(len, left))
        if kept < max(min_left_characters, 1):
            reasons[row] = f"{what}: little left"
            details[row] = f"{kept} of {sum(map(len, parts))} characters are left without {len(cut)} repeated spans"
    result = documents.with_column("text", texts)
    if any(turns is not None for turns in messages):
        result = result.with_column("messages", messages)
    return result.drop(reasons, details)


def count_changes(work: Path) -> dict[str, Any]:
    """How many documents were changed, and how many spans and characters were removed."""
    totals = {"changed_documents": 0, "removed_spans": 0, "removed_characters": 0}
    for path in sorted((work / "changes").glob("*.parquet")):
        for cut in _read(path).values():
            totals["changed_documents"] += 1
            totals["removed_spans"] += len(cut)
            totals["removed_characters"] += sum(end - begin for begin, end in cut)
    return totals


def _merged(rows: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The unions of spans of each row, sorted."""
    order = np.lexsort((begins, rows))
    rows, begins, ends = (np.asarray(values)[order].astype(np.int64) for values in (rows, begins, ends))
    if not len(rows):
        return rows, begins, ends
    stride = int(ends.max()) + 2  # rows apart, so that one running maximum does for all
    reach = np.maximum.accumulate(ends + rows * stride)
    fresh = np.append(True, (begins + rows * stride)[1:] > reach[:-1])
    last = np.append(np.flatnonzero(fresh)[1:] - 1, len(rows) - 1)
    return rows[fresh], begins[fresh], (reach - rows * stride)[last]


def _cut(parts: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[str]:
    """The parts of a document (its text, or the contents of its messages) without the spans of them joined."""
    left, start, first = [], 0, 0
    for part in parts:
        pieces, place, index = [], 0, first
        while index < len(spans) and spans[index][0] < start + len(part):
            begin, end = max(spans[index][0] - start, 0), min(max(spans[index][1] - start, 0), len(part))
            pieces.append(part[place:begin])
            place = max(place, end)
            index += 1
        left.append("".join(pieces) + part[place:])
        start += len(part) + _SEPARATOR
        first = max(first, index - 1)  # the last one seen can reach into the next part
    return left


def _path(work: Path, shard: str) -> Path:
    return work / "changes" / f"{file_name(shard)}.parquet"


def _read(path: Path) -> dict[int, list[tuple[int, int]]]:
    """The spans of each changed row."""
    columns = pq.read_table(path).to_pydict()
    return {
        row: list(zip(begins, ends, strict=True))
        for row, begins, ends in zip(columns["row"], columns["begins"], columns["ends"], strict=True)
    }


@functools.lru_cache(maxsize=2)
def _changes(path: Path, changed_ns: int) -> Mapping[int, list[tuple[int, int]]]:
    """``_read``, kept; ``changed_ns`` tells a new file from an old one."""
    return _read(path)
