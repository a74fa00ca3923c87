"""Tables that are more than they seem: what a file stands for is bounded, whatever it is encoded with."""

import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leyden.data.readers import columns
from leyden.data.readers.tables import Tables

LONG = "x" * (1 << 16)


def _again(value, times):
    """A column of one value many times, which takes no memory to make."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([value]))


def _parquet(path, table, **options):
    pq.write_table(table, path, compression="zstd", store_schema=False, **options)


def _arrow(path, table, **options):
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as file:
        file.write_table(table)


def _nested(times):
    message = pa.StructArray.from_arrays([_again("user", times), _again(LONG, times)], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(times + 1), pa.int32()), message)


def _prefixes(path):
    table = pa.table({"text": [f"{LONG}{number}" for number in range(1000)]})
    _parquet(path, table, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})


MADE = {
    "dictionary.parquet": lambda path: _parquet(path, pa.table({"text": _again(LONG, 100_000)})),
    "nested.parquet": lambda path: _parquet(path, pa.table({"messages": _nested(1000).cast(TURNS)})),
    "prefixes.parquet": _prefixes,
    "short.parquet": lambda path: _parquet(path, pa.table({"text": _again("x", 1_000_000)})),
    "dictionary.arrow": lambda path: _arrow(path, pa.table({"text": _again(LONG, 100_000)}), compression="zstd"),
    "runs.arrow": lambda path: _arrow(
        path, pa.table({"text": pa.RunEndEncodedArray.from_arrays(pa.array([2**31 - 1], pa.int32()), pa.array([LONG]))})
    ),
}
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@pytest.mark.parametrize("name", MADE)
def test_a_file_of_a_few_bytes_gives_no_more_than_its_part(tmp_path, read, name, monkeypatch):
    monkeypatch.setattr(columns, "FREE_BYTES", 2 << 20)
    monkeypatch.setattr(columns, "MAX_RATIO", 10)
    MADE[name](tmp_path / name)
    documents, rejects = read(tmp_path / name)
    assert [reject.reason for reject in rejects] == ["unpacks to too much"]
    assert 10 < len(documents) < 12_000
    assert sum(len(str(document)) for document in documents) < 16 << 20
    assert _peak_of_child() < 400 << 20


def _peak_of_child():
    child = columns._process(64 << 20, 1 << 28)._child
    status = Path(f"/proc/{child._process.pid}/status")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) << 10 if status.exists() else 0


def test_rows_of_nothing_are_given_up(tmp_path, read):
    _arrow(tmp_path / "a.arrow", pa.table({"messages": pa.nulls(2**31 - 1)}))
    _parquet(tmp_path / "b.parquet", pa.table({"text": pa.nulls(3_000_000, pa.string())}))
    for path in sorted(tmp_path.iterdir()):
        documents, rejects = read(path, max_rejects=300)
        assert documents == []
        assert len(rejects) == 301
        assert rejects[-1].reason == "given up"


def test_a_value_that_is_too_long_costs_its_row(tmp_path, read):
    huge = pa.ListArray.from_arrays(pa.array([0, 1, 2**31 - 2, 2**31 - 1], pa.int32()), pa.nulls(2**31 - 1))
    _arrow(tmp_path / "a.arrow", pa.table({"text": ["a", "b", "c"], "list": huge}))
    _parquet(tmp_path / "b.parquet", pa.table({"text": ["a", LONG, "c"]}))
    _parquet(tmp_path / "c.parquet", pa.table({"text": ["a", "b", "c"], "tags": [["t"], [LONG] * 200, ["t"]]}))
    for path in sorted(tmp_path.iterdir()):
        documents, rejects = read(path, max_document_bytes=1 << 15)
        assert [document.text for document in documents] == ["a", "c"]
        assert [(reject.place, reject.reason) for reject in rejects] == [("row 2", "too long")]


def test_where_memory_does_not_suffice_rows_are_decoded_one_by_one(tmp_path, read, monkeypatch):
    monkeypatch.setattr(columns, "_MEMORY_BYTES", (64 << 20) - (1 << 28))  # what is mapped counts for the other 256 MiB
    monkeypatch.setattr(columns, "FREE_BYTES", 1 << 30)
    columns._process.cache_clear()
    steps, call = [], columns._call
    monkeypatch.setattr(columns, "_call", lambda *asked: steps.append(asked[-2]) or call(*asked))
    rows = [*(f"short {number}" for number in range(20)), *["x" * 999_999] * 100, "last"]
    _parquet(tmp_path / "a.parquet", pa.table({"text": rows}))
    documents, rejects = read(tmp_path / "a.parquet", max_document_bytes=1 << 20)
    columns._process.cache_clear()
    assert set(steps[1:]) == {256, 1}
    assert rejects == []
    assert [document.text for document in documents] == rows
    assert [document.id.rpartition(":")[2] for document in documents] == [str(n) for n in range(1, len(rows) + 1)]


@pytest.mark.parametrize("step", [1, 7, 256])
def test_rows_are_the_same_from_any_row_on(tmp_path, step):
    path = tmp_path / "a.parquet"
    _parquet(path, pa.table({"text": [f"text {number}" for number in range(500)]}))
    _arrow(tmp_path / "a.arrow", pq.read_table(path).combine_chunks())
    tables = Tables(1000)
    for format in ("parquet", "arrow"):
        for first in (0, 3, 256, 499, 500):
            found, done = [], False
            while not done:
                asked = (str(path.with_suffix(f".{format}")), format, 0, ("text",), "text", step, first + len(found))
                rows, num_bytes, done = tables("rows", *asked)
                assert done or num_bytes == sum(len(row["text"]) for row in rows)
                found += rows
            assert found == [{"text": f"text {number}"} for number in range(first, 500)]


def _table():
    rows = range(200)
    turns = [[{"role": "user", "content": str(number)}] for number in rows]
    times = pa.array(rows, pa.timestamp("ns"))
    return pa.table({"text": [f"text {number} " for number in rows], "messages": turns, "at": [[t] for t in times]})


def _damaged(path, good, rng):
    data = bytearray(good)
    for _ in range(rng.choice([1, 1, 3, 20])):
        place = rng.randrange(len(data))
        if rng.random() < 0.8:
            data[place] = rng.randrange(256)
        else:
            del data[place : place + rng.randrange(50)]
    path.write_bytes(data)


@pytest.mark.parametrize("count", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_costs_more_than_the_file(tmp_path, read, count):
    _parquet(tmp_path / "a.parquet", _table(), row_group_size=50)
    _arrow(tmp_path / "a.arrow", _table(), compression="zstd")
    rng = random.Random(0)
    for path in (tmp_path / "a.parquet", tmp_path / "a.arrow"):
        good = path.read_bytes()
        assert len(read(path)[0]) == 200
        for _ in range(count // 2):
            _damaged(path, good, rng)
            documents, rejects = read(path)
            assert len(documents) <= 200
            assert rejects or len(documents) == 200 or path.suffix == ".parquet"
            assert "reading failed" not in {reject.reason for reject in rejects}
