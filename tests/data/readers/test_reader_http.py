"""Answers of web servers in archives: heads that bend the rules, codings that were applied or not, bodies cut short."""

import gzip
import io
import random
import zlib
from itertools import product

import brotli
import pytest
import zstandard
from archives import BODY, chunked, page, response
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

HTML = "Content-Type: text/html"
PACK = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),
    "deflate": zlib.compress,
    "Deflate": lambda data: zlib.compress(data)[2:-4],
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
PAGE = page(0).encode()


@pytest.fixture
def pages(tmp_path, read):
    def read_records(*records, **options):
        (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
        return read(tmp_path / "a.warc.gz", **options)

    return read_records


def _is_whole(document):
    return document.text.strip() == f"0: {BODY}".strip()


@pytest.mark.parametrize("coding", PACK)
def test_codings_in_every_place(pages, coding):
    packed = PACK[coding](PAGE)
    assert packed != PAGE
    records = [
        response(1, packed, HTML, f"Content-Encoding: {coding}"),
        response(2, chunked(packed, 20), HTML, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked"),
        response(3, chunked(packed), HTML, f"Transfer-Encoding: {coding}, chunked"),
        response(4, packed, HTML, "Content-Encoding: identity", f"content-encoding: {coding}"),
        response(5, gzip.compress(packed), HTML, f"Content-Encoding: {coding}, gzip"),
        response(6, PAGE, HTML, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked"),  # declared, not applied
        response(8, page(0).encode("utf-16"), HTML, f"Content-Encoding: {coding}"),
        response(7, chunked(PAGE), HTML, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked"),
    ]
    documents, rejects = pages(*records * 3)
    assert rejects == []
    assert [_is_whole(document) for document in documents] == [True] * 24


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Encoding: utf-8",),
        ("Content-Encoding: none",),
        ("Content-Encoding: ",),
        ("Content-Encoding: , ,",),
        ("Content-Encoding: " + "gzip," * 1000,),
        ("Transfer-Encoding: none, identity",),
    ],
)
def test_codings_that_are_none(pages, fields):
    [document], rejects = pages(response(1, PAGE, HTML, *fields))
    assert _is_whole(document)
    assert rejects == []


def test_chunks_as_servers_write_them(pages):
    size = b"%x" % len(PAGE)
    bodies = [
        size + b";name=value\r\n" + PAGE + b"\r\n0\r\nTrailer: x\r\n\r\n",
        size + b"  \r\n" + PAGE + b"\r\n0000\r\n\r\n",
        b"000" + size + b"\n" + PAGE + b"\n0\n\n",
        size.upper() + b"\r\n" + PAGE + b"\r\n",  # without the last chunk
        size + b"\r\n" + PAGE,
    ]
    documents, rejects = pages(
        *(response(n, body, HTML, "Transfer-Encoding: chunked") for n, body in enumerate(bodies))
    )
    assert [_is_whole(document) for document in documents] == [True] * len(bodies)
    assert rejects == []
    text = b"10\nlittle Indians"  # no chunk
    documents, _ = pages(response(1, text, "Content-Type: text/plain", "Transfer-Encoding: chunked"))
    assert [document.text for document in documents] == [text.decode()]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "Deflate", "br", "chunked"])
def test_a_body_that_is_cut_short_is_kept_and_told(pages, coding):
    text = "\n".join(f"{n}: {random.Random(n).randbytes(20).hex()}" for n in range(900))
    data = chunked(text.encode(), 10_000) if coding == "chunked" else PACK[coding](text.encode())
    field = f"{'Transfer' if coding == 'chunked' else 'Content'}-Encoding: {coding}"
    [document, other], [reject] = pages(
        response(1, data[: len(data) * 3 // 4], "Content-Type: text/plain", field), response(2, PAGE, HTML)
    )
    assert len(document.text) > len(text) / 4
    assert text.startswith(document.text)
    assert (reject.reason, reject.place) == ("cut short", "byte 0")
    assert _is_whole(other)


def test_a_body_that_unpacks_to_too_much_is_set_aside(pages):
    bodies = [pack(bytes(4 << 20)) for coding, pack in PACK.items() if coding != "GZIP"]
    names = [coding for coding in PACK if coding != "GZIP"]
    records = (response(0, body, HTML, f"Content-Encoding: {name}") for name, body in zip(names, bodies, strict=True))
    documents, rejects = pages(*records, response(1, PAGE, HTML), max_document_bytes=1 << 20)
    assert [reject.reason for reject in rejects] == ["too long"] * len(bodies)
    assert len(documents) == 1


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n".replace("\r\n", "\n"), ()),
        ("", (HTML,)),
        ("ICY 200 OK", (HTML,)),
        ("HTTP/2 200", (HTML,)),
        ("HTTP/1.0 200", ("CONTENT-TYPE : text/html",)),
        ("HTTP/1.1 200 Fine: really", ("Content-Type:", "\ttext/html;", " charset=utf-8")),
        ("HTTP/1.1", (HTML,)),
        ("HTTP/1.1 200 OK", ("Content-Type: text/html, text/html; charset=utf-8",)),
        ("HTTP/1.1 200 OK", (HTML, "Content-Type: text/html;charset=utf-8")),
        ("HTTP/1.1 200 OK", ("Content-Type: html",)),
        ("HTTP/1.1 200 OK", ("Content-Type: */*", "a line without a colon", "Odd name: x")),
        ("HTTP/1.1 200 OK", ()),
        ("", ()),
        ("HTTP/1.1 200 OK", (HTML, "Transfer-Encoding", "Content-Length: 7")),
    ],
)
def test_heads_that_bend_the_rules(pages, status, fields):
    documents, rejects = pages(response(1, PAGE, *fields, status=status), response(2, PAGE, HTML))
    assert [_is_whole(document) for document in documents] == [True, True]
    assert rejects == []


def test_what_is_no_page_is_counted_by_its_kind(pages):
    records = [
        response(1, b"gone", HTML, status="HTTP/1.1 404 Not Found"),
        response(2, b"gone", HTML, status="HTTP/1.1 404"),
        response(3, b"\x89PNG\r\n\x1a\n\0", "Content-Type: image/png"),
        response(4, b"\x89PNG\r\n\x1a\n\0"),
        response(5, b"\x89PNG\r\n\x1a\n\0", HTML),
        response(6, b"", HTML),
        response(7, b"words: no head", status=""),
    ]
    documents, rejects = pages(*records)
    assert [document.text for document in documents] == ["words: no head"]
    assert sorted((reject.reason, reject.detail) for reject in rejects) == [
        ("binary", "a NUL character"),
        ("empty", ""),
        ("not a page", "status: 404"),
        ("not a page", "type: application/octet-stream"),
        ("not a page", "type: image/png"),
    ]


def test_a_head_without_an_end_is_set_aside(pages):
    documents, rejects = pages(response(1, b"", *["X-A: b"] * 100_000), response(2, PAGE, HTML))
    assert len(documents) == 1
    assert [reject.reason for reject in rejects] == ["corrupt HTTP"]


BODIES = st.text("abcäß 漢\n", min_size=1, max_size=300).map(lambda text: f"Text: {text}.")
CODINGS = st.sampled_from(list(product(("", "gzip", "deflate"), ("", "chunked"), (True, False))))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # warcio leaves its scratch files open
@settings(max_examples=40, deadline=None)
@given(records=st.lists(st.tuples(BODIES, CODINGS), min_size=1, max_size=6), packed=st.booleans())
def test_pages_are_those_that_warcio_reads(tmp_path_factory, read, records, packed):
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=packed)
    for number, (text, (content, transfer, applied)) in enumerate(records):
        body = text.encode()
        fields = [("Content-Type", "text/plain; charset=utf-8")]
        if content:
            body = PACK[content](body) if applied else body
            fields.append(("Content-Encoding", content))
        if transfer:
            body = chunked(body, 50) if applied or not content else body
            fields.append(("Transfer-Encoding", "chunked"))
        headers = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
        url = f"http://e.org/{number}"
        writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))
        writer.write_record(writer.create_warc_record(url, "metadata", io.BytesIO(b"a: b")))
    path = tmp_path_factory.mktemp("warc") / f"a.warc{'.gz' if packed else ''}"
    path.write_bytes(file.getvalue())
    with path.open("rb") as archive:
        theirs = [
            (record.rec_headers.get_header("WARC-Target-URI"), record.content_stream().read().decode())
            for record in ArchiveIterator(archive)
            if record.rec_type == "response"
        ]
    documents, rejects = read(path)
    assert rejects == []
    assert [(document.url, document.text) for document in documents] == theirs
    assert [text for _, text in theirs] == [text for text, _ in records]
