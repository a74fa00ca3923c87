"""PDF files, made by hand and by pypdf."""

import importlib.util
import io
from datetime import UTC, datetime

import pypdf
import pytest


def _pdf(*pages, encrypt=None):
    """A file with a line of text on each page, encrypted with a user's and an owner's password."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for text in pages:
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode("latin-1")
        font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources %s >>"
        objects.append(page % (len(objects), b"<< /Font << /F1 %s >> >>" % font))
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    data = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    data += end % (len(objects) + 1, table, len(objects) + 1, len(data))
    writer = pypdf.PdfWriter(io.BytesIO(data))
    writer.add_metadata({"/Title": "A title", "/CreationDate": "D:20240102030405Z"})
    if encrypt:
        writer.encrypt(*encrypt, algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_text_and_metadata(tmp_path, read):
    (tmp_path / "a.pdf").write_bytes(_pdf("The first page.", "", "The third."))
    [document], rejects = read(tmp_path / "a.pdf")
    assert document.text == "The first page.\n\nThe third."
    assert document.time == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert document.metadata == {"num_pages": 3, "title": "A title"}
    assert rejects == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "corrupt PDF"),
        (b"plain text", "corrupt PDF"),
        (b"%PDF-1.4\n" + b"\0" * 1000, "corrupt PDF"),
        (_pdf(""), "PDF without text"),
        (_pdf("x" * 3000), "too long"),
        (_pdf("text", encrypt=("secret",)), "encrypted PDF"),
    ],
)
def test_a_file_that_is_set_aside(tmp_path, read, data, reason):
    (tmp_path / "a.pdf").write_bytes(data)
    documents, rejects = read(tmp_path, max_document_bytes=2000)
    assert documents == []
    assert [reject.reason for reject in rejects] == [reason]


def test_a_file_with_only_an_owners_password_is_read(tmp_path, read):
    data = _pdf("Minutes of the council", encrypt=("", "owner"))
    (tmp_path / "a.pdf").write_bytes(data)
    [document], rejects = read(tmp_path / "a.pdf")
    assert document.text == "Minutes of the council"
    assert document.metadata["title"] == "A title"
    assert rejects == []


@pytest.mark.skipif(importlib.util.find_spec("cryptography") is not None, reason="cryptography is installed")
def test_a_file_that_needs_another_package_says_so(tmp_path, read):
    filters = b"/V 4 /CF << /StdCF << /CFM /AESV2 /Length 16 >> >> /StmF /StdCF /StrF /StdCF"
    data = _pdf("Minutes of the council", encrypt=("", "owner"))
    (tmp_path / "a.pdf").write_bytes(data.replace(b"/V 2", filters).replace(b"/R 3", b"/R 4"))
    documents, [reject] = read(tmp_path)
    assert documents == []
    assert reject.reason == "encrypted PDF"
    assert "pip install 'cryptography" in reject.detail


def test_a_file_that_takes_too_long_is_set_aside_and_the_next_is_read(tmp_path, read):
    (tmp_path / "a.pdf").write_bytes(_pdf("a) Tj (" * 200_000, "An end."))
    (tmp_path / "b.pdf").write_bytes(_pdf(*["a) Tj (" * 200] * 400))  # no page takes long, all together do
    (tmp_path / "c.pdf").write_bytes(_pdf("Minutes of the council"))
    documents, rejects = read(tmp_path, max_extraction_seconds=0.3)
    assert documents[-1].text == "Minutes of the council"
    assert rejects[0].reason == "took too long"
    documents, rejects = read(tmp_path / "b.pdf", max_extraction_seconds=0.005)
    assert documents == []
    assert [reject.reason for reject in rejects] == ["took too long"]


def test_files_cut_anywhere_give_text_or_are_set_aside(tmp_path, read):
    data = _pdf("The first page.", "The second.")
    for cut in range(0, len(data), 101):
        (tmp_path / "a.pdf").write_bytes(data[:cut])
        documents, rejects = read(tmp_path)
        assert len(documents) + len(rejects) == 1
