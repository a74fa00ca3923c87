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


MENU = "<ul class='x'><li><a href='/'>Home page</a></li><li><a href='/b'>About us all</a></li><li>Here</li></ul>"
LISTS = f"""<html><body>{MENU}<h1>Soup</h1><p>{BODY}</p>
<ul><li>Boil the beans in salted water.</li><li>Drain <a href=a>them well</a>, and let them cool.
<ul><li>A sieve helps.</li></ul></li></ul>
<p>Serve it hot.</p><dl><dt>Bean</dt><dd>A seed of a plant.</dd></dl><ol><li>First.</li><li>Second.</li></ol>
<div><div><div><div><div><ul><li>See <a href=b>the other recipes of ours</a> for what else beans are good for.</li></ul>
</div></div></div></div></div>{MENU}</body></html>"""


@pytest.mark.parametrize("html", ["resiliparse", "trafilatura"])
def test_a_list_near_the_root_stays(tmp_path, read, html):
    steps = ["Boil the beans in salted water until they are soft.", "Drain them well, and let them cool."]
    items = "".join(f"<li>{step}</li>" for step in steps)
    (tmp_path / "a.html").write_text(
        f"<html><body>{MENU}<h1>Soup</h1><p>{BODY}</p><ul>{items}</ul><p>Serve it hot.</p>"
    )
    [document], _ = read(tmp_path, html=html)
    assert all(step in document.text for step in steps)
    assert "Home page" not in document.text


def test_lists_stay_and_menus_go(tmp_path, read):
    (tmp_path / "a.html").write_text(LISTS)
    [document], _ = read(tmp_path)
    lines = [line.strip() for line in document.text.splitlines() if line.strip()]
    assert lines == [
        "Soup",
        BODY.strip(),
        "• Boil the beans in salted water.",
        "• Drain them well, and let them cool.",
        "• A sieve helps.",
        "Serve it hot.",
        "Bean",
        "A seed of a plant.",
        "1. First.",
        "2. Second.",
        "• See the other recipes of ours for what else beans are good for.",
    ]


@pytest.mark.parametrize("html", ["resiliparse", "trafilatura"])
@pytest.mark.parametrize("around", ["<menu>{}</menu>", "<dir>{}</dir>", "{}", "<div><div>{}</div></div>"])
def test_lists_of_other_elements_end_where_they_end(tmp_path, read, html, around):
    items = around.format("<li>Boil the beans in salted water.</li><li>Drain them well.</li>")
    (tmp_path / "a.html").write_text(f"<html><body><p>{BODY}</p>{items}<p>Serve it hot, with bread.</p>")
    [document], _ = read(tmp_path, html=html)
    lines = [line.strip(" •-") for line in document.text.splitlines() if line.strip()]
    assert lines[-3:] == ["Boil the beans in salted water.", "Drain them well.", "Serve it hot, with bread."]
    assert document.text.splitlines()[-1] == lines[-1]


def test_lists_of_navigation_go_whatever_is_in_them(tmp_path, read):
    words = "<ul><li>The whole library, and all of its shelves</li></ul>"
    around = [f"<{tag}>{words}</{tag}>" for tag in ("nav", "header", "footer", "aside")]
    around += [f"<div class='sidebar'>{words}</div>", f"<div role=navigation>{words}</div>"]
    around += [words.replace("<ul>", "<ul class='nav-menu'>"), words.replace("<ul>", "<ul hidden>")]
    (tmp_path / "a.html").write_text(f"<html><body>{''.join(around)}<main><p>{BODY}</p></main></body></html>")
    [document], _ = read(tmp_path)
    assert document.text.strip() == BODY.strip()


FORMATTING = b"".join(b"<b id=%d>" % number for number in range(400))
HOSTILE = {
    "elements": b"<p>" + FORMATTING + b"</p>" + b"<p>x" * 3000,
    "attributes": b"<p " + b" ".join(b"a%d" % number for number in range(40_000)) + b">x",
}


def test_pages_that_take_too_much_are_set_aside_and_the_others_are_read(tmp_path, read):
    for name, data in HOSTILE.items():
        (tmp_path / f"{name}.html").write_bytes(data)
    (tmp_path / "z.html").write_text(_page())
    documents, rejects = read(tmp_path, max_extraction_seconds=0.25)
    assert [document.id for document in documents] == [f"s/{tmp_path.name}/z.html"]
    assert [reject.reason for reject in rejects] == ["took too long"] * 2
    assert "more than 0.25 seconds" in rejects[0].detail
    documents, rejects = read(tmp_path / "elements.html", tmp_path / "z.html", max_extraction_bytes=32 << 20)
    assert len(documents) == 1
    assert [reject.reason for reject in rejects] == ["took too much memory"]
