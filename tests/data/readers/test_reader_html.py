"""Web pages: main text, encodings, and pages that are made to break readers."""

import pytest

BODY = "The water of the lake was clear and cold, and we stayed until the evening came. " * 3


def _page(body=BODY, head="<title>A lake</title>"):
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/b'>About us</a></li></ul></nav>"
    footer = "<footer>Copyright Nobody. All rights reserved.</footer>"
    return f"<html lang='en-GB'><head>{head}</head><body>{menu}<main><p>{body}</p></main>{footer}</body></html>"


@pytest.mark.parametrize("html", ["resiliparse", "trafilatura"])
def test_the_main_text(tmp_path, read, html):
    (tmp_path / "a.html").write_text(_page())
    [document], rejects = read(tmp_path / "a.html", html=html)
    assert document.text.strip() == BODY.strip()
    assert (document.id, document.source) == ("s/a.html", "s")
    assert document.metadata == {"title": "A lake", "html_language": "en-GB"}
    assert rejects == []
    [document], _ = read(tmp_path / "a.html", html=html, metadata="none")
    assert document.metadata == {}


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("<meta charset='utf-8'>", "utf-8"),
        ("<meta charset='windows-1252'>", "cp1252"),
        ("<meta http-equiv='Content-Type' content='text/html; charset=shift_jis'>", "shift_jis"),
        ("", "utf-8"),
        ("", "utf-16"),
        ("", "utf-8-sig"),
    ],
)
def test_encodings(tmp_path, read, head, encoding):
    said = BODY + ("日本語の文章です。" if encoding == "shift_jis" else "Zürich, für später, naïve façade.")
    (tmp_path / "a.html").write_bytes(_page(said, head).encode(encoding))
    [document], rejects = read(tmp_path)
    assert document.text.strip() == said
    assert rejects == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"<html><body></body></html>", "no main text"),
        (b"<script>var a = 1</script>", "no main text"),
        (b"<p>" + b"a\0" * 20, "binary"),
        (b"<html><body>" + b"<div>" * 50_000 + b"deep", "nested too deeply"),
        (b"<html><body>" + b"<div>" * 50_000 + b"deep" + b"</div>" * 50_000, "nested too deeply"),
        (_page("x" * 20_000).encode(), "too long"),
    ],
)
@pytest.mark.parametrize("html", ["resiliparse", "trafilatura"])
def test_a_page_that_is_set_aside(tmp_path, read, data, reason, html):
    (tmp_path / "a.html").write_bytes(data)
    documents, rejects = read(tmp_path, html=html, max_document_bytes=10_000 if reason == "too long" else 1 << 20)
    assert documents == []
    assert [reject.reason for reject in rejects] == [reason]


def test_many_elements_that_are_not_closed_are_not_deep(tmp_path, read):
    (tmp_path / "a.html").write_text(_page("<br>\n".join([BODY] * 3000)))
    documents, rejects = read(tmp_path)
    assert documents[0].text.count(BODY.strip()) == 3000
    assert rejects == []
