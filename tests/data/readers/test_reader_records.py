"""The records of archives, however they are packed and whatever is broken between them: none is passed over unsaid."""

import gzip
import random

import pytest
import zstandard
from archives import record
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from leyden.data.readers.problem import Problem
from leyden.data.readers.records import is_packed_by_record, records

KINDS = ("response", "resource", "conversion", "request", "metadata", "warcinfo", "revisit")
TEXTS = st.text("aé漢\n\r", max_size=400)


def _http(text):
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + text.encode()


def _plain(kind, number, text, style=""):
    """A record, not packed, as one writer or another has it."""
    is_http = kind in ("response", "revisit")
    kind_of_content = "application/http; msgtype=response" if is_http else "text/plain"
    data = record(kind, number, _http(text) if is_http else text.encode(), kind_of_content, packed=False)
    head, end, body = data.partition(b"\r\n\r\n")
    if style == "small":
        head = head.replace(b"WARC-Type", b"warc-type").replace(b"Content-Length", b"content-length")
    if style == "lines":
        head, end = head.replace(b"\r\n", b"\n"), b"\n\n"
    if style == "folded":
        head = head.replace(b"WARC-Date: ", b"WARC-Date:\r\n ").replace(b"WARC/1.0", b"WARC/1.1")
    return head + end + body + (b"\r\n\r\n" if style == "blank" else b"")


def _expected(found):
    """The texts that a list of kinds and texts stands for."""
    kept = [(kind, text) for kind, text, *_ in found if kind in ("response", "resource", "conversion")]
    return [text for _, text in kept if text]


ARCHIVE = st.lists(
    st.tuples(st.sampled_from(KINDS), TEXTS, st.sampled_from(("", "", "small", "lines", "folded", "blank"))), max_size=8
)
PACKINGS = {
    ".warc": lambda parts, _: b"".join(parts),
    ".warc.gz": lambda parts, _: b"".join(map(gzip.compress, parts)),
    "one.warc.gz": lambda parts, _: gzip.compress(b"".join(parts)),
    "some.warc.gz": lambda parts, n: b"".join(
        gzip.compress(b"".join(parts[i : i + n])) for i in range(0, len(parts), n)
    ),
    "blocks.warc.gz": lambda parts, n: b"".join(
        gzip.compress(b"".join(parts)[i : i + 97 * n]) for i in range(0, len(b"".join(parts)), 97 * n)
    ),
    ".warc.zst": lambda parts, _: b"".join(map(zstandard.ZstdCompressor().compress, parts)),
    "one.warc.zst": lambda parts, _: zstandard.ZstdCompressor().compress(b"".join(parts)),
}


def _check_whole(path, read, found, shard_bytes, packing, size):
    path.write_bytes(PACKINGS[packing]([_plain(kind, n, text, s) for n, (kind, text, s) in enumerate(found)], size))
    documents, rejects = read(path, shard_bytes=shard_bytes)
    assert [document.text for document in documents] == _expected(found)
    assert {reject.reason for reject in rejects} <= {"empty", "not a page"}
    assert len({document.id for document in documents}) == len(documents)
    at_once, _ = read(path, shard_bytes=1 << 30)
    assert at_once == documents
    others = sum(reject.count for reject in rejects if reject.reason == "not a page")
    assert others == sum(kind == "revisit" for kind, *_ in found)


@settings(max_examples=40, deadline=None)
@given(found=ARCHIVE, shard_bytes=st.integers(1, 3000), packing=st.sampled_from(list(PACKINGS)), size=st.integers(1, 4))
def test_every_record_is_read_however_it_is_packed(tmp_path_factory, read, found, shard_bytes, packing, size):
    path = tmp_path_factory.mktemp("warc") / f"a{packing}"
    _check_whole(path, read, found, shard_bytes, packing, size)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(found=ARCHIVE, shard_bytes=st.integers(1, 3000), packing=st.sampled_from(list(PACKINGS)), size=st.integers(1, 4))
def test_every_record_of_thousands_of_archives_is_read(tmp_path_factory, read, found, shard_bytes, packing, size):
    path = tmp_path_factory.mktemp("warc") / f"a{packing}"
    _check_whole(path, read, found, shard_bytes, packing, size)


def _theirs(path):
    """The contents of pages that warcio reads before it gives up."""
    contents = []
    with path.open("rb") as file:
        try:
            for one in ArchiveIterator(file):
                if one.rec_type == "response":
                    content = one.content_stream().read()
                    if len(content) == int(one.http_headers.get_header("Content-Length")):
                        contents.append(content.decode())
        except Exception:
            pass  # what it does after damage is not of interest
    return contents


NUMBERED = [
    record(
        "response",
        n,
        _http(f"{n}: {'words ' * 30}").replace(
            b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(f"{n}: {'words ' * 30}"), 1
        ),
        "application/http",
        packed=False,
    )
    for n in range(6)
]


def _check_damage(path, read, generator, packed):
    archive = bytearray(b"".join(map(gzip.compress, NUMBERED) if packed else NUMBERED))
    start = generator.randrange(len(archive))
    archive[start : start + generator.randrange(300)] = generator.randbytes(generator.randrange(40))
    path.write_bytes(archive)
    documents, rejects = read(path)
    texts = {document.text for document in documents}
    assert texts >= set(_theirs(path)) or rejects
    whole = {one.partition(b"\r\n\r\n")[2].partition(b"\r\n\r\n")[2][:-4].decode() for one in NUMBERED}
    assert len(texts & whole) >= 4 or rejects  # at most two records were touched
    assert len(texts & whole) >= 3
    assert len(texts & whole) == 6 or rejects or not packed


@pytest.mark.parametrize("packed", [True, False])
def test_damage_costs_no_record_that_another_reader_has(tmp_path, read, packed):
    path = tmp_path / f"a.warc{'.gz' if packed else ''}"
    for seed in range(25):
        _check_damage(path, read, random.Random(seed), packed)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_damage_of_thousands_of_archives_costs_no_other_record(tmp_path, read, packed):
    path = tmp_path / f"a.warc{'.gz' if packed else ''}"
    for seed in range(3000):
        _check_damage(path, read, random.Random(seed), packed)


@pytest.mark.parametrize("pack", [None, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda one: b"junk\r\n" * 9 + one, 0),
        (lambda one: one + b"\0" * 600, 0),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: 9", 1), 1),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: 99999999", 1), 1),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: -", 1), 1),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: 0x", 1), 1),
        (lambda one: one.replace(b"Content-Length: ", b"X: ", 1), 1),
        (lambda one: one.replace(b"WARC-Type", b"X", 1), 1),
        (lambda one: one.replace(b"WARC/1.0", b"WARC", 1), 1),
        (lambda one: b"WARC/1.0\r\n" + b"X-Y: z\r\n" * 200_000, 1),
    ],
)
def test_what_is_broken_costs_itself_alone_and_is_told(tmp_path, read, pack, change, lost):
    parts = list(NUMBERED)
    parts[2] = change(parts[2])
    data = b"".join(parts)
    suffix = {None: "", gzip.compress: ".gz"}.get(pack, ".zst")
    (tmp_path / f"a.warc{suffix}").write_bytes(pack(data) if pack else data)
    documents, rejects = read(tmp_path)
    numbers = [int(document.text.partition(":")[0]) for document in documents]
    assert [number for number in numbers if number != 2] == [0, 1, 3, 4, 5]
    assert numbers.count(2) == 1 - lost
    assert rejects
    assert {reject.reason for reject in rejects} == {"corrupt WARC"}
    assert rejects[0].place.startswith("byte ")


def test_a_hostile_archive_ends(tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(b"WARC/1.0\r\nContent-Length: 99999999\r\nWARC-Type: response\r\n\r\n" * 20_000)
    found = [one for _, one in records(path, 0, None, 100)]
    assert len(found) < 200
    assert all(isinstance(one, Problem) for one in found)
    assert "the rest" in found[-1].detail
    assert not is_packed_by_record(path)
