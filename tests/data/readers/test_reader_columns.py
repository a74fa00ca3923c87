"""Parquet and Arrow: columns to documents, whatever else stands in the file."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leyden.data import Documents


def _table():
    return pa.table(
        {
            "text": ["one", "two"],
            "url": ["http://e.org", None],
            "date": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "picture": [b"\x89PNG", b""],
            "image": [{"bytes": b"x", "path": "a"}, None],
            "tags": [["a", "b"], []],
            "price": [Decimal("1.5"), None],
            "day": [date(2024, 1, 2), None],
            "language": pa.array(["en", "de"]).dictionary_encode(),
        }
    )


def test_columns(tmp_path, read):
    pq.write_table(_table(), tmp_path / "a.parquet")
    [one, two], rejects = read(tmp_path / "a.parquet")
    assert (one.id, one.text, one.url, one.language) == ("s/a.parquet:1", "one", "http://e.org", "en")
    assert one.time == datetime.fromtimestamp(1_700_000_000.123456, UTC)
    assert one.metadata == {"tags": ["a", "b"], "price": "1.5", "day": "2024-01-02"}
    assert (two.url, two.time, two.language, two.metadata) == (None, None, "de", {"tags": []})
    assert rejects == []
    assert list(Documents.of([one, two])) == [one, two]
    assert [d.metadata for d in read(tmp_path, metadata=("day",))[0]] == [{"day": "2024-01-02"}, {}]


def test_messages(tmp_path, read):
    turns = [[{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}], [], None]
    pq.write_table(pa.table({"conversations": turns, "stars": [1, 2, 3]}), tmp_path / "a.parquet")
    [document], rejects = read(tmp_path)
    assert [(m.role, m.content) for m in document.messages] == [("user", "why?"), ("assistant", "so.")]
    assert document.metadata == {"stars": 1}
    assert [(reject.place, reject.reason) for reject in rejects] == [("row 2", 'no "text"'), ("row 3", 'no "text"')]


def test_strings_that_are_not_utf8_cost_their_rows_alone(tmp_path, read):
    def strings(values):
        array = pa.array(values, pa.binary())
        return pa.StringArray.from_buffers(len(array), *array.buffers()[1:])

    other = strings([b"x", b"y", b"\xff", b"z"])
    pq.write_table(
        pa.table({"text": strings([b"one", b"\xff", b"three", b"four"]), "other": other}), tmp_path / "a.parquet"
    )
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["one", "four"]
    assert [(reject.place, reject.reason) for reject in rejects] == [("row 2", "not UTF-8"), ("row 3", "not UTF-8")]


def test_values_that_python_does_not_know(tmp_path, read):
    days = pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"text": ["one", "two"], "day": days}), tmp_path / "a.parquet")
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["one"]
    assert [(reject.place, reject.reason) for reject in rejects] == [("row 2", "unreadable value")]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "foreign"])
def test_a_broken_file_is_set_aside(tmp_path, read, damage):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(n) * 50 for n in range(1000)]}), path, row_group_size=100)
    data = path.read_bytes()
    broken = {"cut": data[:-100], "noise": data[:300] + bytes(300) + data[600:], "empty": b"", "foreign": b"PAR1" * 9}
    path.write_bytes(broken[damage])
    for shard_bytes in (100, 1 << 20):
        documents, rejects = read(path, shard_bytes=shard_bytes)
        assert rejects
        assert {reject.reason for reject in rejects} == {"corrupt parquet"}
        assert len(documents) == (900 if damage == "noise" else 0)  # each row group by itself


def _saved(folder, table, names=("data-00000-of-00001.arrow",)):
    """As ``datasets.Dataset.save_to_disk`` does: Arrow streams, and what describes them."""
    folder.mkdir(parents=True)
    for name in names:
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset(tmp_path, read):
    table = pa.table({"text": [f"text {n}" for n in range(1000)], "n": range(1000)})
    _saved(tmp_path / "set" / "train", table)
    _saved(tmp_path / "set" / "test", table.slice(0, 2))
    (tmp_path / "set" / "train" / "cache-0123.arrow").write_bytes(b"no data of the set")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    documents, rejects = read(tmp_path / "set")
    assert rejects == []
    assert [document.text for document in documents] == ["text 0", "text 1"] + [f"text {n}" for n in range(1000)]
    assert documents[0].id == "s/set/test/data-00000-of-00001.arrow:1"
    assert documents[-1].id == "s/set/train/data-00000-of-00001.arrow:1000"
    assert documents[-1].metadata == {"n": 999}


def test_an_arrow_file_and_broken_ones(tmp_path, read):
    table = pa.table({"text": [f"text {n}" for n in range(1000)]})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert len(read(tmp_path / "a.arrow")[0]) == 1000
    _saved(tmp_path / "set", table)
    [path] = (tmp_path / "set").glob("*.arrow")
    data = path.read_bytes()
    for broken in (b"junk" * 100, data[: len(data) // 2], data[:100]):
        path.write_bytes(broken)
        documents, rejects = read(path)
        assert [document.text for document in documents] == [f"text {n}" for n in range(len(documents))]
        assert [reject.reason for reject in rejects] == ["corrupt arrow"]
