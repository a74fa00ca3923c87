"""Every kind of file is read; what is broken is set aside with its place, and reading goes on."""

import dataclasses
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from leyden.core.errors import UserError
from leyden.data import Document, find_sources, read_documents, standard_library_sources
from leyden.data.parquet import batches

TEXT = "Zürich\r\n東京 🙂\n"


def _read(*paths):
    rejects = []
    documents = list(read_documents(paths, rejects))
    return [(document.id, document.text) for document in documents], rejects


def _row(text):
    return json.dumps({"text": text, "other": 1}).encode() + b"\n"


@pytest.mark.parametrize("suffix", ["txt", "md", "py", "TXT", "jsonl"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_kind_of_file(tmp_path, suffix, packed):
    path = tmp_path / f"a.{suffix}{packed}"
    data = b"\n" + _row(TEXT) + b"\n" + _row("b").strip() if suffix == "jsonl" else TEXT.encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packed]
    path.write_bytes(pack(data[:10]) + pack(data[10:]))  # two parts, as log files are concatenated
    expected = [(f"{path.name}:2", TEXT), (f"{path.name}:4", "b")] if suffix == "jsonl" else [(path.name, TEXT)]
    assert _read(path) == (expected, [])


def test_a_part_of_the_standard_library():
    documents, rejects = _read("python:stdlib/json")
    assert {"json/decoder.py", "json/encoder.py"} <= {name for name, _ in documents}
    assert all(reject.reason == "empty" for reject in rejects)
    with pytest.raises(UserError, match="nosuch"):
        _read("python:stdlib/nosuch")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    text = pa.array([TEXT, "b"], pa.string()).cast(kind)
    pq.write_table(pa.table({"other": [1, 2], "text": text}), tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet") == ([("a.parquet:1", TEXT), ("a.parquet:2", "b")], [])


def test_folders_are_searched_in_the_order_of_names(tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    for name in ("b/2.txt", "a.txt", "b/10.md", "b/.git/c.txt", ".hidden.txt", "picture.png", "c.tar.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "loop").symlink_to(folder)
    documents, rejects = _read(folder)
    assert documents == [("texts/a.txt", "a.txt"), ("texts/b/10.md", "b/10.md"), ("texts/b/2.txt", "b/2.txt")]
    assert [(os.path.basename(reject.source), reject.reason) for reject in rejects] == [
        (".hidden.txt", "hidden"),
        ("c.tar.gz", "suffix not read"),
        ("loop", "link to a folder"),
        ("picture.png", "suffix not read"),
        (".git", "hidden"),
    ]
    monkeypatch.chdir(folder)
    assert _read(".") == (documents, [dataclasses.replace(r, source=os.path.relpath(r.source)) for r in rejects])


BROKEN = {
    "latin.txt": (b"ab\xe9", "byte 2", "not UTF-8"),
    "binary.md": (b"ab\0", "byte 2", "binary"),
    "utf16.txt": ("ab".encode("utf-16-le"), "byte 1", "binary"),  # without a byte order mark, nothing says so
    "empty.txt": (b"", "", "empty"),
    "bom.txt": (b"\xef\xbb\xbf", "", "empty"),
    "rows.jsonl": (b"\n \n", "", "empty"),
    "cookie.py": (b"# coding: klingon\n", "", "not UTF-8"),
    "codec.py": (b"# coding: hex\n00", "", "not UTF-8"),
    "slow.py": (b"# coding: punycode\n-" + b"b" * 10**7, "", "not UTF-8"),  # hours of work
    "surrogate.py": (b"# coding: unicode_escape\nx = '\\ud800'", "byte", "not UTF-8"),
    "latin.py": (b"x = '\xe9'", "", "not UTF-8"),
    "not.txt.gz": (b"plain text", "compressed byte", "corrupt gzip"),
    "short.txt.gz": (gzip.compress(os.urandom(1000))[:-12], "compressed byte", "corrupt gzip"),
    "check.txt.gz": (gzip.compress(b"abc")[:-8] + b"12345678", "compressed byte", "corrupt gzip"),
    "not.txt.zst": (b"plain text", "compressed byte", "corrupt zstd"),
    "short.txt.zst": (zstandard.ZstdCompressor().compress(os.urandom(1000))[:-2], "compressed byte", "corrupt zstd"),
    "not.parquet": (b"plain text", "", "corrupt parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_set_aside(tmp_path, name):
    data, place, reason = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "z.txt").write_text("good")
    documents, rejects = _read(tmp_path)
    assert [text for _, text in documents] == ["good"]
    assert [(reject.source, reject.reason) for reject in rejects] == [(str(tmp_path / name), reason)]
    assert rejects[0].place.startswith(place if name != "surrogate.py" else "")
    with pytest.raises(UserError, match=f"None of 1 files gave a document.*{reason}"):
        _read(tmp_path / name)


def test_python_is_decoded_by_its_cookie(tmp_path):
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\r\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"\xef\xbb\xbfx = '\xc3\xa9'\n")
    documents, rejects = _read(tmp_path)
    assert [text for _, text in documents] == ["# -*- coding: latin-1 -*-\nx = 'é'\r\n", "x = 'é'\n"]
    assert rejects == []


def test_broken_rows_of_jsonl_are_set_aside_with_their_lines(tmp_path):
    lines = [
        _row("one"),
        b"{not json}\n",
        b'{"messages": [], "id": 3}\n',
        b'{"text": 3}\n',
        b'["text"]\n',
        b'{"text": "\xff"}\n',
        b'{"text": "\\ud800"}\n',
        b"[" * 100_000 + b"\n",
        _row(""),
        _row("two\0three"),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    documents, rejects = _read(tmp_path / "a.jsonl")
    assert documents == [("a.jsonl:1", "one"), ("a.jsonl:10", "two\0three")]
    assert [(reject.place, reject.reason) for reject in rejects] == [
        ("line 2", "not JSON"),
        ("line 3", 'no "text"'),
        ("line 4", '"text" is not a string'),
        ("line 5", "not a JSON object"),
        ("line 6", "not UTF-8"),
        ("line 7", "not UTF-8"),
        ("line 8", "not JSON"),
        ("line 9", "empty"),
    ]
    assert "messages, id" in str(rejects[1])


def test_what_stands_before_a_break_is_kept(tmp_path):
    data = b"".join(_row(os.urandom(20).hex()) for _ in range(2000))
    whole = gzip.compress(data)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.jsonl").write_bytes(_row("after"))
    documents, rejects = _read(tmp_path)
    assert documents[-1][1] == "after"
    assert [reject.reason for reject in rejects] == ["corrupt gzip"]


def test_broken_rows_of_parquet(tmp_path):
    text = pa.array([b"one", None, b"\xff", b""]).cast(pa.binary())
    text = pa.StringArray.from_buffers(4, *text.buffers()[1:], text.buffers()[0])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    documents, rejects = _read(tmp_path / "a.parquet")
    assert documents == [("a.parquet:1", "one")]
    assert [(reject.place, reject.reason) for reject in rejects] == [
        ("row 2", '"text" is not a string'),
        ("row 3", "not UTF-8"),
        ("row 4", "empty"),
    ]


@pytest.mark.parametrize("column", ["body", "text"])
def test_parquet_without_text(tmp_path, column):
    pq.write_table(pa.table({column: [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="columns: body" if column == "body" else "type int64"):
        _read(tmp_path / "a.parquet")


def test_a_file_that_may_not_be_read_is_set_aside(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    path_open = type(tmp_path).open

    def refuse(path, *arguments):
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied")
        return path_open(path, *arguments)

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    documents, rejects = _read(tmp_path)
    assert documents == [(f"{tmp_path.name}/b.txt", "b")]
    assert [(reject.reason, reject.detail) for reject in rejects] == [("unreadable", "Permission denied")]


def test_what_the_user_names_must_be_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        _read(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="nothing to read"):
        _read(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="nothing to read"):
        _read(tmp_path)
    with pytest.raises(
        UserError, match=r"allowed: \.txt, \.md, \.py, \.jsonl, \.parquet \(text also as \.gz or \.zst\)"
    ):
        _read(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="not a file of a kind that is read"):
        _read(tmp_path / "pipe.txt")


def test_the_standard_library_is_there():
    sources = standard_library_sources()
    names = [source.name for source in sources]
    assert "json/decoder.py" in names
    assert not any("site-packages" in name or "__pycache__" in name for name in names)
    assert len(set(names)) == len(names) > 500
    rejects = []
    documents = list(read_documents([s for s in sources if s.name.startswith("json/")], rejects))
    assert {"json/__init__.py", "json/scanner.py"} <= {document.id for document in documents}


def test_sources_know_their_format(tmp_path):
    for name in ("a.PY.gz", "b.jsonl.zst", "c.parquet", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    sources, skipped = find_sources([tmp_path])
    assert [source.format for source in sources] == ["code", "jsonl", "parquet", "text"]
    assert skipped == []


def test_a_batch_is_bounded_by_all_that_its_documents_say():
    long = {"tags": ["x" * (1 << 20)], "other": {"y" * 1000: [1, [2]]}}
    given = [Document(str(number), "a", "s", metadata=long) for number in range(40)]
    assert [len(batch) for batch in batches(given)] == [8, 8, 8, 8, 8]
    given = [Document("i" * (1 << 20), "a", "s", url="u" * (1 << 20))] * 8
    assert [len(batch) for batch in batches(given)] == [4, 4]
    assert [len(batch) for batch in batches([Document("a", "a", "s")] * 5000)] == [4096, 904]
