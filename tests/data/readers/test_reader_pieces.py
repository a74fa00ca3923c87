"""Every document comes exactly once, with the same id, however sources are cut; and its lines need no memory."""

import itertools
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.data import Document
from leyden.data.readers import READERS, SourceSettings, plan_shards, read_piece
from leyden.data.readers.packed import line_range, lines
from leyden.data.readers.problem import Problem

LINES = st.lists(
    st.one_of(st.text(max_size=30).map(lambda text: json.dumps({"text": text}).encode()), st.binary(max_size=10)),
    max_size=20,
)


def _naive(data, name):
    """Documents by splitting the whole file: id and text."""
    place = 0
    for line in data.split(b"\n"):
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError:
            row = None
        if isinstance(row, dict) and row.get("text"):
            yield f"{name}@{place}", row["text"]
        place += len(line) + 1


@settings(max_examples=80, deadline=None)
@given(rows=LINES, shard_bytes=st.integers(1, 200), ends=st.booleans())
def test_every_line_is_read_once_whatever_the_shards(tmp_path_factory, read, rows, shard_bytes, ends):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    data = b"\n".join(rows) + (b"\n" if ends else b"")
    path.write_bytes(data)
    documents, rejects = read(path, shard_bytes=shard_bytes)
    assert [(d.id, d.text) for d in documents] == list(_naive(data, "s/a.jsonl"))
    _, of_one_shard = read(path, shard_bytes=1 << 20)
    assert rejects == of_one_shard


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"a", b"\n")), max_size=20),
    limit=st.integers(1, 30),
)
def test_lines_come_from_pieces_cut_anywhere(pieces, limit):
    data = b"".join(pieces)
    whole = data.split(b"\n")
    whole = whole if whole[-1] else whole[:-1]
    found = list(lines(pieces, limit))
    assert [place for place, _ in found] == [sum(len(line) + 1 for line in whole[:n]) for n in range(len(whole))]
    expected = [line if len(line) <= limit else "too long" for line in whole]
    assert [line.reason if isinstance(line, Problem) else line for _, line in found] == expected


@pytest.mark.parametrize("shard_bytes", [1, 300, 2000, 1 << 20])
def test_every_row_of_parquet_is_read_once(tmp_path, read, shard_bytes):
    texts = [f"text {number} " + "x" * (number % 50) for number in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=64)
    documents, rejects = read(tmp_path / "a.parquet", shard_bytes=shard_bytes)
    assert [(d.id, d.text) for d in documents] == [(f"s/a.parquet:{n}", text) for n, text in enumerate(texts, 1)]
    assert rejects == []


def test_shards_hold_about_what_is_asked(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * 3000)
    (tmp_path / "big.jsonl").write_bytes(b'{"text": "x"}\n' * 5000)
    pq.write_table(
        pa.table({"text": [os.urandom(50).hex() for _ in range(2000)]}), tmp_path / "c.parquet", row_group_size=100
    )
    source = SourceSettings(name="s", paths=(str(tmp_path),))
    shards = plan_shards(source, 20_000)
    sizes = [sum(piece.num_bytes for piece in shard) for shard in shards]
    assert all(size <= 20_000 for size in sizes)
    assert all(a + b > 20_000 for a, b in itertools.pairwise(sizes[:-1]))
    (tmp_path / "5.txt").write_bytes(b"x" * 30_000)  # that cannot be cut
    assert [[p.source.path.name for p in shard] for shard in plan_shards(source, 20_000)[:3]] == [
        ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt"],
        ["5.txt"],
        ["6.txt", "7.txt", "8.txt", "9.txt"],
    ]
    (tmp_path / "5.txt").write_bytes(b"x" * 3000)
    whole = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert abs(sum(sizes) - whole) < 0.1 * whole
    assert shards == plan_shards(source, 20_000)


def test_one_huge_line_is_set_aside_without_being_held(tmp_path, read):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    documents, rejects = read(path, shard_bytes=8 << 20, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in documents] == ["before", "after"]
    assert [(r.place, r.reason, r.detail) for r in rejects] == [("byte 19", "too long", "more than 1,048,576 bytes")]
    assert peak < 8 << 20


def test_a_range_that_no_line_begins_in_reads_no_further(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (8 << 20) + b"\n{}")
    assert list(line_range(path, 1, 10, 100)) == []
    assert list(line_range(path, 1 << 20, 2 << 20, 100)) == []
    assert [place for place, _ in line_range(path, 2, (8 << 20) + 2, 100)] == [(8 << 20) + 1]


def test_patterns_and_formats(tmp_path, read):
    for name in ("b/2.log", "b/1.log", "c.log", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    documents, _ = read(tmp_path / "**/*.log", format="text")
    assert [document.text for document in documents] == ["b/1.log", "b/2.log", "c.log"]
    assert [document.id for document in documents] == ["s/1.log", "s/2.log", "s/c.log"]
    assert {document.source for document in documents} == {"s"}
    with pytest.raises(UserError, match="No file matches"):
        read(tmp_path / "*.nothing")
    with pytest.raises(UserError, match=r"not a file of a kind that is read; allowed: \.txt.*\.parquet.*\.pdf"):
        read(tmp_path / "c.log")


def test_a_file_named_twice_is_read_once_and_two_of_one_name_are_refused(tmp_path, read):
    for folder in ("a", "b"):
        (tmp_path / folder / "train").mkdir(parents=True)
        (tmp_path / folder / "train" / "1.txt").write_text(folder)
    documents, _ = read(tmp_path / "a/train", tmp_path / "a/train/1.txt", tmp_path / "a/train")
    assert [document.id for document in documents] == ["s/train/1.txt"]
    with pytest.raises(UserError, match=r"both be called s/train/1\.txt"):
        read(tmp_path / "a/train", tmp_path / "b/train")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "s", "paths": ["a"], "format": "josnl"}, "no format 'josnl'; did you mean 'jsonl'"),
        ({"name": "a/b", "paths": ["a"]}, "'name'"),
        ({"name": "s", "paths": []}, "'paths'"),
        ({"name": "s", "paths": [""]}, "a path is empty"),
        ({"name": "s", "paths": ["a"], "encoding": "klingon"}, "no such encoding"),
        ({"name": "s", "paths": ["a"], "txt": "body"}, "unknown key 'txt'; did you mean 'text'"),
        ({"name": "s", "paths": ["a"], "html": "lynx"}, "resiliparse"),
    ],
)
def test_a_wrong_source_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        SourceSettings.parse(table, "recipe.toml")


def test_reading_a_piece_of_a_file_that_is_gone(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    source = SourceSettings(name="s", paths=(str(tmp_path),))
    [[piece]] = plan_shards(source, 100)
    (tmp_path / "a.txt").unlink()
    rejects = []
    assert list(read_piece(piece, source, rejects)) == []
    assert [(reject.reason, reject.detail) for reject in rejects] == [("unreadable", "No such file or directory")]


@pytest.mark.parametrize("change", ["grows", "written again", "gone"])
def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path, change):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\n')
    source = SourceSettings(name="s", paths=(str(path),))
    [[piece]] = plan_shards(source, 100)
    rejects = []
    documents = read_piece(piece, source, rejects)
    first = next(documents)
    if change == "grows":
        path.write_bytes(path.read_bytes() + b'{"text": "three"}\n')
    elif change == "written again":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    assert [first.text, *(document.text for document in documents)] == ["one", "two"]
    details = {"grows": "32 bytes before, 50 after", "written again": change, "gone": "No such file or directory"}
    assert [(reject.reason, reject.detail) for reject in rejects] == [("changed while read", details[change])]


def test_a_file_that_is_nearly_all_set_aside_is_given_up(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 3 + b"x\n" * 1000 + b'{"text": "b"}\n')
    documents, rejects = read(path, max_rejects=5)
    assert [document.text for document in documents] == ["a"] * 3
    assert [reject.reason for reject in rejects] == ["not JSON"] * 5 + ["given up"]
    assert rejects[-1].detail == "5 times 'not JSON', and 3 documents; what follows is not read"
    path.write_bytes(b'{"text": "a"}\nx\n' * 1000)  # half of it is good
    assert len(read(path, max_rejects=5)[0]) == 5
    path.write_bytes(b'{"text": "a"}\n{"text": "a"}\nx\n' * 100)
    assert len(read(path, max_rejects=5)[0]) == 200
    path.write_bytes(b'{"text": ""}\n' * 100 + b'{"text": "a"}\n')  # nothing is wrong with what is empty
    assert len(read(path, max_rejects=5)[0]) == 1


def test_what_a_library_did_not_foresee_costs_its_file(tmp_path, read, monkeypatch):
    def fail(piece, settings):
        yield "", Document(piece.source.name, "before", "s")
        raise ArithmeticError("planted")

    monkeypatch.setitem(READERS, "text", fail)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.md").write_text("b")
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["before", "b"]
    assert [(reject.reason, reject.detail) for reject in rejects] == [("reading failed", "ArithmeticError: planted")]
