"""Web archives: pages and their text, whoever wrote the archive, and what is broken in one."""

import gzip
import random
from datetime import UTC, datetime

import pytest
import zstandard
from archives import BODY, page, record
from hypothesis import given, settings
from hypothesis import strategies as st


def _archive(pages, *, packed=True, status="200 OK", content_type="text/html; charset=utf-8", **headers):
    """An archive of requests and responses, and where each response begins."""
    data, places = b"", []
    given = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    for number, one in enumerate(pages):
        http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{given}\r\n".encode()
        request = b"GET / HTTP/1.1\r\n\r\n"
        data += record("request", number, request, "application/http; msgtype=request", packed=packed)
        places.append(len(data))
        body = one if isinstance(one, bytes) else one.encode()
        data += record("response", number, http + body, "application/http; msgtype=response", packed=packed)
    return data, places


def _numbers(documents):
    return [int(document.text.partition(":")[0]) for document in documents]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
@pytest.mark.parametrize("html", ["resiliparse", "trafilatura"])
def test_pages(tmp_path, read, name, html):
    data, places = _archive([page(n) for n in range(3)], packed=name.endswith(".gz"))
    if name.endswith(".zst"):
        data = zstandard.ZstdCompressor().compress(data)
    (tmp_path / name).write_bytes(data)
    documents, rejects = read(tmp_path / name, html=html)
    assert rejects == []
    labels = [f"@{place}" for place in places] if name.endswith(".gz") else [":2", ":4", ":6"]
    assert [document.id for document in documents] == [f"s/{name}{label}" for label in labels]
    assert [document.text.strip() for document in documents] == [f"{n}: {BODY}".strip() for n in range(3)]
    first = documents[0]
    assert (first.url, first.time) == ("http://e.org/0", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC))
    assert first.metadata["title"] == "Page 0"
    assert first.metadata["html_language"] == "en"
    assert first.metadata["warc_record_id"].startswith("urn:uuid:")


def test_wet(tmp_path, read):
    texts = ["Zürich\nist schön.".encode(), "Zürich".encode("latin-1"), "東京".encode()]
    data = record("warcinfo", 0, b"software: test\r\n", "application/warc-fields")
    data += b"".join(record("conversion", n, text, "text/plain") for n, text in enumerate(texts))
    (tmp_path / "a.warc.wet.gz").write_bytes(data)
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["Zürich\nist schön.", "東京"]
    assert len({document.id for document in documents}) == 2
    assert [reject.reason for reject in rejects] == ["not UTF-8"]


def test_what_is_no_page_is_passed_over(tmp_path, read):
    (tmp_path / "a.warc").write_bytes(
        _archive([page(1)], packed=False, status="404 Not Found")[0]
        + _archive([b"\x89PNG"], packed=False, content_type="image/png")[0]
        + _archive([b"plain words"], packed=False, content_type="text/plain")[0]
    )
    documents, rejects = read(tmp_path)
    assert [document.text for document in documents] == ["plain words"]
    assert {(reject.reason, reject.detail) for reject in rejects} == {
        ("not a page", "status: 404"),
        ("not a page", "type: image/png"),
    }


def test_a_page_in_another_encoding(tmp_path, read):
    text = page(1).replace("lake", "Zürichsee €")
    declared = text.replace("<head>", '<head><meta charset="windows-1252">').encode("cp1252")
    data = _archive([text.encode("cp1252")], content_type="text/html; charset=windows-1252")[0]
    (tmp_path / "a.warc.gz").write_bytes(data + _archive([declared], content_type="text/html")[0])
    documents, rejects = read(tmp_path)
    assert ["Zürichsee €" in document.text for document in documents] == [True, True]
    assert rejects == []


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", ["noise", "cut", "header"])
def test_reading_goes_on_after_a_brokenrecord(tmp_path, read, packed, damage):
    data, places = _archive([page(n) for n in range(4)], packed=packed)
    data = bytearray(data)
    if damage == "noise":
        data[places[1] + 30 : places[1] + 330] = random.Random(0).randbytes(300)
    elif damage == "cut":
        del data[places[1] + 150 : places[2] - 20]
    else:
        data[places[1] : places[1] + 10] = b"x" * 10
    path = tmp_path / f"a.warc{'.gz' if packed else ''}"
    path.write_bytes(data)
    documents, rejects = read(path)
    assert [n for n in _numbers(documents) if n != 1] == [0, 2, 3]
    assert rejects
    assert {reject.reason for reject in rejects} <= {"corrupt WARC", "no main text"}


@pytest.mark.parametrize("packed", [True, False])
def test_an_archive_cut_anywhere_is_reported(tmp_path, read, packed):
    data, places = _archive([page(n) for n in range(3)], packed=packed)
    path = tmp_path / f"a.warc{'.gz' if packed else ''}"
    for cut in range(places[2] + 1, len(data), 61):
        path.write_bytes(data[:cut])
        documents, rejects = read(path)
        assert _numbers(documents)[:2] == [0, 1]
        assert [reject.reason for reject in rejects] == ["corrupt WARC"], (cut, places, len(data), rejects)
    path.write_bytes(data)
    assert read(path)[1] == []


@pytest.mark.parametrize(
    "data", [b"", b"junk" * 1000, b"WARC/1.0\r\n", gzip.compress(b"junk", mtime=0), b"\x1f\x8b\x08\0"]
)
def test_no_archive(tmp_path, read, data):
    (tmp_path / "a.warc.gz").write_bytes(data)
    documents, rejects = read(tmp_path)
    assert documents == []
    assert [reject.reason for reject in rejects] == ["corrupt WARC" if data else "empty"]


def test_a_long_page_is_set_aside(tmp_path, read):
    data, places = _archive([page(0), page(1) + "x" * 10_000, page(2)])
    (tmp_path / "a.warc.gz").write_bytes(data)
    documents, rejects = read(tmp_path, max_document_bytes=5000)
    assert _numbers(documents) == [0, 2]
    assert [(reject.reason, reject.place) for reject in rejects] == [("too long", f"byte {places[1]}")]


WHOLE = {packed: _archive([page(n) for n in range(3)], packed=packed)[0] for packed in (True, False)}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), packed=st.booleans())
def test_any_damage_ends_and_spares_the_other_records(tmp_path_factory, read, data, packed):
    archive = bytearray(WHOLE[packed])
    start = data.draw(st.integers(0, len(archive) - 1))
    archive[start : start + data.draw(st.integers(0, 60))] = data.draw(st.binary(max_size=60))
    path = tmp_path_factory.mktemp("warc") / f"a.warc{'.gz' if packed else ''}"
    path.write_bytes(archive)
    documents, rejects = read(path)
    if packed:  # each record has its checksum
        intact = [document for document in documents if document.text.strip().endswith(BODY.strip())]
        assert len(intact) >= 2
        assert len(intact) == 3 or rejects


@settings(max_examples=40, deadline=None)
@given(shard_bytes=st.integers(1, 4000), lengths=st.lists(st.integers(1, 3000), max_size=6))
def test_every_record_is_read_once_whatever_the_shards(tmp_path_factory, read, shard_bytes, lengths):
    noise = random.Random(0).randbytes(1500).hex()
    data, places = _archive([f"{n}: {noise[:length]}" for n, length in enumerate(lengths)], content_type="text/plain")
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    path.write_bytes(data)
    documents, rejects = read(path, shard_bytes=shard_bytes)
    assert [document.id for document in documents] == [f"s/a.warc.gz@{place}" for place in places]
    assert _numbers(documents) == list(range(len(lengths)))
    assert rejects == ([] if lengths else read(path)[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shard_bytes=st.integers(100, 3000))
def test_damage_costs_the_same_documents_whatever_the_shards(tmp_path_factory, read, data, shard_bytes):
    archive = bytearray(WHOLE[True])
    start = data.draw(st.integers(600, len(archive) - 1))
    archive[start : start + data.draw(st.integers(0, 60))] = data.draw(st.binary(max_size=60))
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    path.write_bytes(archive)
    documents, rejects = read(path, shard_bytes=shard_bytes)
    expected, of_one = read(path)
    assert documents == expected
    assert bool(rejects) == bool(of_one)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)])
def test_an_archive_packed_as_one_is_read_whole(tmp_path, read, suffix, pack):
    noise = random.Random(0).randbytes(20_000)
    pages = [f"{n}: {noise[n:].hex()}" for n in range(30)]  # more than fits in any buffer, packed too
    data = pack(_archive(pages, packed=False, content_type="text/plain")[0])
    path = tmp_path / f"a.warc{suffix}"
    path.write_bytes(data)
    documents, rejects = read(path, shard_bytes=100)
    assert [document.id for document in documents] == [f"s/a.warc{suffix}:{n}" for n in range(2, 62, 2)]
    assert [document.text for document in documents] == pages
    assert rejects == []
    path.write_bytes(data[:-100])
    documents, rejects = read(path)
    assert [document.text for document in documents] == pages[: len(documents)]
    assert [reject.reason for reject in rejects] == ["corrupt WARC"]
