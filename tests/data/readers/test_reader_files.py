"""Files that are one document each, the table of formats, and datasets of the hub."""

import gzip
import os
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import pytest

from leyden.core.errors import UserError
from leyden.data.readers import READERS, SourceSettings, plan_shards, read_piece
from leyden.data.sources import FORMATS, PROGRAMMING_LANGUAGES, find_sources


def test_every_format_has_a_reader_and_every_suffix_one_format():
    assert set(READERS) == set(FORMATS)
    suffixes = [suffix for of_format in FORMATS.values() for suffix in of_format]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in suffixes)
    assert len(FORMATS["code"]) == sum(len(suffixes.split()) for suffixes in PROGRAMMING_LANGUAGES.values())


def test_a_source_tree(tmp_path, read):
    files = {"a.py": "Python", "b/c.RS": "Rust", "b/d.hpp.gz": "C++", "e.ts": "TypeScript", "README.md": None}
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "package.json").write_text('{"text": "no data, perhaps"}')
    (tmp_path / "b/d.hpp.gz").write_bytes(gzip.compress(b"b/d.hpp.gz"))
    documents, rejects = read(tmp_path)
    assert rejects == []
    found = {document.text: document.metadata.get("programming_language") for document in documents}
    assert found == files
    assert [document.text for document in read(tmp_path / "package.json")[0]] == ["no data, perhaps"]
    assert [document.text for document in read(tmp_path, format="jsonl")[0]] == ["no data, perhaps"]


def test_broken_files_are_set_aside_and_the_others_are_read(tmp_path, read):
    files = {
        "a.txt": (b"ab\xe9", "not UTF-8"),
        "b.rs": (b"a\0b", "binary"),
        "c.md": (b"", "empty"),
        "d.txt": (b"x" * 2000, "too long"),
        "e.py": (b"# coding: klingon\n", "not UTF-8"),
        "f.jsonl": (b"", "empty"),
        "g.txt.gz": (b"", "empty"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "z.txt").write_text("good")
    (tmp_path / "z.unknown").write_text("no document")
    documents, rejects = read(tmp_path, max_document_bytes=1000)
    assert [document.text for document in documents] == ["good"]
    assert {reject.source.rpartition("/")[2]: reject.reason for reject in rejects} == {
        n: r for n, (_, r) in files.items()
    }


def test_another_encoding(tmp_path, read):
    (tmp_path / "a.txt").write_bytes("Zürich".encode("cp1252"))
    (tmp_path / "b.txt").write_text("Zürich")
    (tmp_path / "c.txt").write_bytes(b"\x81")
    documents, rejects = read(tmp_path, encoding="cp1252")
    assert [document.text for document in documents] == ["Zürich", "Zürich"]
    assert [(reject.reason, reject.place) for reject in rejects] == [("not UTF-8", "byte 0")]
    (tmp_path / "d.txt").write_bytes("Zürich".encode("utf-16"))
    assert [document.text for document in read(tmp_path / "d.txt", encoding="utf-16")[0]] == ["Zürich"]


def test_a_byte_order_mark_says_the_encoding(tmp_path, read):
    for name in ("utf-8-sig", "utf-16", "utf-16-be"):
        bom = "\ufeff" if name == "utf-16-be" else ""
        (tmp_path / f"{name}.txt").write_bytes((bom + "Zürich").encode(name))
    (tmp_path / "cut.txt").write_bytes("Zürich".encode("utf-16")[:-1])
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["Zürich"] * 3
    assert [reject.reason for reject in rejects] == ["not UTF-8"]


def test_a_dataset_of_the_hub(tmp_path, read, monkeypatch):
    asked = {}

    def snapshot(repository, **options):
        asked.update(options, repository=repository)
        (tmp_path / "snapshot" / "data").mkdir(parents=True, exist_ok=True)
        (tmp_path / "snapshot" / "data" / "a.jsonl").write_text('{"text": "a"}\n')
        (tmp_path / "snapshot" / "README.md").write_text("about")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    documents, _ = read("hf://owner/name@v1/data")
    assert [(document.id, document.text) for document in documents] == [("s/owner/name/data/a.jsonl@0", "a")]
    assert (asked["repository"], asked["repo_type"], asked["revision"]) == ("owner/name", "dataset", "v1")
    assert asked["allow_patterns"] == ["data/**", "data"]
    assert [document.text for document in read("hf://datasets/owner/name")[0]] == ["a"]  # and not its README
    assert "*.parquet" in asked["allow_patterns"]
    assert [document.text for document in read("hf://owner/name", format="markdown")[0]] == ["about"]
    assert asked["revision"] is None
    with pytest.raises(UserError, match="names no dataset"):
        read("hf://name")


def test_the_hub_without_a_network(read, monkeypatch):
    def snapshot(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"ConnectionError: no route to host.*name a folder"):
        read("hf://owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        read("hf://owner/name")


def test_what_describes_a_saved_dataset_is_no_document(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "a.png").write_bytes(b"")
    sources, skipped = find_sources([tmp_path], FORMATS)
    assert sources == []
    assert _reasons(skipped) == {"a.png": "suffix not read", "state.json": "not data of its dataset"}


def _reasons(rejects):
    return {os.path.basename(reject.source): reject.reason for reject in rejects}


@pytest.fixture
def packed(tmp_path):
    """A folder as somebody else packed it, with links to what is beside it."""
    folder = tmp_path / "packed"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    for path in (folder / "a.txt", folder / "inner" / "b.txt", tmp_path / "beside" / "secret.txt"):
        path.write_text(path.name)
    links = {"passwd.txt": "/etc/passwd", "secret.txt": "../beside/secret.txt", "beside": "../beside"}
    links |= {"same.txt": "inner/b.txt", "same": "inner", "gone.txt": "nothing", "loop.txt": "loop.txt", "round": "."}
    links |= {"null.txt": "/dev/null", "chain.txt": "beside/secret.txt", "parent": ".."}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.txt")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "b.json").write_text("{}")
    return folder


NOT_READ = {
    **dict.fromkeys(
        ("passwd.txt", "secret.txt", "beside", "null.txt", "chain.txt", "parent"), "link outside the folder"
    ),
    **dict.fromkeys(("same", "round"), "link to a folder"),
    **dict.fromkeys(("gone.txt", "loop.txt"), "broken link"),
    "pipe.txt": "special file",
    ".hidden.txt": "hidden",
}


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt", "*"])
def test_links_do_not_leave_the_folder_that_was_named(packed, read, pattern):
    source, skipped = SourceSettings(name="s", paths=(str(packed / pattern),)), []
    texts = [
        document.text
        for shard in plan_shards(source, 1 << 20, skipped)
        for piece in shard
        for document in read_piece(piece, source, [])
    ]
    assert set(texts) <= {"a.txt", "b.txt"}
    if not pattern:
        assert sorted(texts) == ["a.txt", "b.txt", "b.txt"]
        assert _reasons(skipped) == {**NOT_READ, "b.json": "JSON in a folder"}
    if pattern == "**/*.txt":
        assert sorted(texts) == ["a.txt", "b.txt", "b.txt"]
        assert _reasons(skipped) == {name: reason for name, reason in NOT_READ.items() if name.endswith(".txt")}
    [own] = read(packed / "same" / "b.txt")[0]  # who names a link means it
    assert own.text == "b.txt"
    assert len(read(packed / "same")[0]) == 1


@pytest.mark.parametrize("settings", [{}, {"format": "jsonl"}, {"format": "code"}])
def test_everything_in_a_folder_is_read_or_has_a_reason(packed, settings):
    for name in ("c.py", "d.parquet", "e.PNG", ".git/config", "set/state.json", "set/a.arrow", "set/b.arrow"):
        (packed / name).parent.mkdir(exist_ok=True)
        (packed / name).write_text(name)
    (packed / "set" / "dataset_info.json").write_text("{}")
    (packed / "set" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    skipped = []
    shards = plan_shards(SourceSettings(name="s", paths=(str(packed),), **settings), 1 << 20, skipped)
    accounted = {str(piece.source.path) for shard in shards for piece in shard}
    assert accounted.isdisjoint(reject.source for reject in skipped)
    accounted.update(reject.source for reject in skipped)
    for folder, folders, names in os.walk(packed):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in accounted]
        for name in names:
            assert os.path.join(folder, name) in accounted


def test_folders_that_are_called_like_files(tmp_path, read):
    for name in ("a.jsonl", "b.txt.gz", "new\nline.parquet", "[c]*.txt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "d.txt").write_text(name)
    names = {"a.jsonl", "b.txt.gz", "new\nline.parquet", "[c]*.txt"}
    assert {document.text for document in read(tmp_path)[0]} == names
    for name in names:
        assert [document.text for document in read(tmp_path / name)[0]] == [name]
        assert [document.text for document in read(tmp_path / name, format="text")[0]] == [name]


def test_a_snapshot_in_the_cache_of_the_hub_has_its_own_blobs(tmp_path, read):
    cache = tmp_path / "datasets--owner--name"
    snapshot, blobs = cache / "snapshots" / "4f" / "data", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0a").write_text("ours")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "a.txt").symlink_to("../../../blobs/0a")
    (snapshot / "b.txt").symlink_to("../../../../secret")
    for named in (snapshot.parent, snapshot):
        assert [document.text for document in read(named)[0]] == ["ours"]


def test_a_folder_that_may_not_be_searched_costs_that_folder(tmp_path, read, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.txt").write_text("a")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    sources, skipped = find_sources([tmp_path], FORMATS)
    assert [source.path.name for source in sources] == ["a.txt"]
    assert [(reject.reason, reject.detail) for reject in skipped] == [("unreadable", "Permission denied")]
    with pytest.raises(UserError, match="shut cannot be looked into: Permission denied"):
        find_sources([tmp_path / "shut"], FORMATS)


def test_files_that_may_not_be_read_are_set_aside(read):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "listed").mkdir()
        for path in (folder / "a.txt", folder / "b.txt", folder / "c.jsonl", folder / "listed" / "d.txt"):
            path.write_text(path.name)
        assert len(read(folder)[0]) == 3
        (folder / "b.txt").chmod(0)
        (folder / "c.jsonl").chmod(0)
        (folder / "listed").chmod(0o444)  # its names may be read, its files not
        source, skipped, rejects = SourceSettings(name="s", paths=(name,)), [], []
        user = os.geteuid()
        try:
            if user == 0:  # who may do anything
                os.seteuid(65534)
            pieces = [piece for shard in plan_shards(source, 100, skipped) for piece in shard]
            documents = [document.text for piece in pieces for document in read_piece(piece, source, rejects)]
        finally:
            os.seteuid(user)
            (folder / "listed").chmod(0o755)
    assert documents == ["a.txt"]
    assert _reasons([*rejects, *skipped]) == dict.fromkeys(("b.txt", "c.jsonl", "d.txt"), "unreadable")


def test_a_file_whose_name_is_not_unicode_is_set_aside(tmp_path, read):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("a")
    documents, rejects = read(tmp_path)
    assert documents == []
    assert [reject.reason for reject in rejects] == ["not UTF-8"]
