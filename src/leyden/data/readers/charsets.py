"""Bytes of the web to text, as browsers decode them (https://encoding.spec.whatwg.org)."""

import codecs
import functools
import re
from collections.abc import Iterator
from typing import Any

import webencodings

from leyden.data.readers.problem import Problem

_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16be", b"\xff\xfe": "utf-16le"}
_UTF_16 = ("utf-16be", "utf-16le")
_UNICODE = ("utf-8", *_UTF_16)

_ASCII = re.compile("[\x00-\x7f]+")
_MARKUP = re.compile(rb"<(?:(!--)|([!?])|(meta|script|style|title|textarea|noscript)(?=[\s/>])|/?[a-z])", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rb"[\s/]*(?:(>)|([^\s/>][^\s/>=]*)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"'][^\s>]*)))?)", re.DOTALL
)
_UNCLOSED = re.compile(rb"\s*=\s*[\"']")
_CHARSET = re.compile(rb"charset", re.IGNORECASE)
_IN_CONTENT = re.compile(rb"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"']+))", re.IGNORECASE)
_IN_XML = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*(?:\"([^\">]*)\"|'([^'>]*)')")

_SEARCHED_BYTES = 1 << 17
"""Of a page, for what it says of its encoding. The standard searches 1,024 at first; browsers begin anew when they meet
it later."""

_MOST = 0.5
"""Of the characters that are not ASCII: where more are errors, the encoding is another."""

_DETECTABLE = 12
"""Bytes that are not ASCII; of fewer nothing can be told."""

_NAMES = {"cp949": "euc-kr", "cp932": "shift_jis", "iso2022_jp": "iso-2022-jp", "euc_jp": "euc-jp"}
"""The web's names for what detection may answer."""


def decode_text(data: bytes, charset: str = "") -> str:
    """A text, by its byte order mark, what its server said, or what its bytes show.

    Bytes that its encoding does not have become U+FFFD. Where most of what is not ASCII is so, the encoding was
    declared wrongly, and the bytes decide.

    Raises:
        Problem: it is binary, or of an encoding that browsers refuse to decode.
    """
    return _decode(data, webencodings.lookup(charset))


def decode_page(data: bytes, charset: str = "") -> str:
    """As :func:`decode_text`; but where its server did not say, a page of HTML may say itself."""
    return _decode(data, webencodings.lookup(charset) or _declared(data[:_SEARCHED_BYTES]))


def _decode(data: bytes, declared: webencodings.Encoding | None) -> str:
    for bom, name in _BOMS.items():
        if data.startswith(bom):
            return _without_nuls(_decoded(data[len(bom) :], name))
    name = declared.name if declared is not None else ""
    if name == "replacement":
        raise Problem("not decoded", "it is said to be in an encoding that browsers refuse, as it can hide scripts")
    if name in _UTF_16 and b"\0" not in data[:1000]:
        name = ""
    text = _decoded(data, name or "utf-8")
    errors, characters = _errors(text, data)
    # One bad byte overrules nothing that was declared.
    if errors > _MOST * characters + (1 if name else 0) or (not name and _is_other(data)):
        text = next(_guesses(data), text)
    return _without_nuls(text)


def _guesses(data: bytes) -> Iterator[str]:
    """The data as text, by what its bytes show: the likeliest first."""
    from resiliparse.parse.encoding import detect_encoding

    for name in (*_UTF_16, "iso-2022-jp"):
        if _is_other(data) == name:
            yield _decoded(data, name)
    detected = detect_encoding(data, html5_compatible=False) if _num_high(data) >= _DETECTABLE else None
    encoding = webencodings.lookup(_NAMES.get(detected, detected)) if detected else None
    if encoding is not None:
        text = _decoded(data, encoding.name)
        errors, characters = _errors(text, data)
        if errors <= _MOST * characters:
            yield text
    yield _decoded(data, "windows-1252")


def _is_other(data: bytes) -> str:
    """The encoding of text that could also pass for UTF-8, or nothing."""
    if b"\x1b$" in data:
        return "iso-2022-jp"
    return {b"<\0": "utf-16le", b"\0<": "utf-16be"}.get(data[:2], "")


def _num_high(data: bytes) -> int:
    return len(data) - len(data.decode("ascii", "ignore"))


def _errors(text: str, data: bytes) -> tuple[int, int]:
    """How many errors there were, but for a character that the end cuts; and how many characters are not ASCII."""
    if "\ufffd" not in text:
        return 0, 1
    cut = text.endswith("\ufffd")
    errors = text.count("\ufffd") - data.count(b"\xef\xbf\xbd") - cut
    return errors, len(_ASCII.sub("", text)) - cut


def _without_nuls(text: str) -> str:
    """Raise a Problem if a text is binary: a few NUL characters may have strayed into it, but no more."""
    if "\0" not in text:
        return text
    if text.count("\0") > len(text) / 100:
        raise Problem("binary", "a NUL character", f"character {text.index(chr(0))}")
    return text.replace("\0", "")


def _declared(data: bytes) -> webencodings.Encoding | None:
    """What a page says of its encoding (https://html.spec.whatwg.org/#prescan-a-byte-stream-to-determine-its-encoding).

    As browsers do, it passes over what scripts and styles hold.
    """
    at = 0 if _CHARSET.search(data) else len(data)
    while match := _MARKUP.search(data, at):
        comment, other, tag = match.groups()
        if comment or other:
            end = b"-->" if comment else b">"
            at = data.find(end, match.start() + 2)
            if at < 0:
                break
            at += len(end)
            continue
        attributes, at = _attributes(data, match.end())
        tag = (tag or b"").lower()
        if tag == b"meta":
            if (encoding := _of_meta(attributes)) is not None:
                return encoding
        elif tag:
            closing = re.compile(rb"</%s[\s/>]" % tag, re.IGNORECASE).search(data, at)
            if closing is None:
                break
            at = closing.start()
    xml = _IN_XML.match(data)
    return _of_label(xml[1] or xml[2] or b"") if xml else None


def _attributes(data: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    """The attributes of a tag by their names in small letters, and where it ends."""
    found: dict[bytes, bytes] = {}
    while match := _ATTRIBUTE.match(data, at):
        at = match.end()
        if match[1]:
            return found, at
        if match.lastindex == 2 and _UNCLOSED.match(data, at):
            break
        found.setdefault(match[2].lower(), match[3] or match[4] or match[5] or b"")
    return {}, len(data)  # it does not end


def _of_meta(attributes: dict[bytes, bytes]) -> webencodings.Encoding | None:
    if b"charset" in attributes:
        return _of_label(attributes[b"charset"])
    if attributes.get(b"http-equiv", b"").lower() == b"content-type":
        match = _IN_CONTENT.search(attributes.get(b"content", b""))
        return _of_label(match[1] or match[2] or match[3] or b"") if match else None
    return None


def _of_label(label: bytes) -> webencodings.Encoding | None:
    """The encoding that a page means by a label: if it were UTF-16, its label could not be read."""
    encoding = webencodings.lookup(label.decode("latin-1"))
    name = encoding.name if encoding is not None else ""
    means = "utf-8" if name in _UTF_16 else "windows-1252" if name == "x-user-defined" else ""
    return webencodings.lookup(means) if means else encoding


def _decoded(data: bytes, name: str) -> str:
    """Bytes of one of the standard's encodings, which Python's codecs are brought up to."""
    name = "gb18030" if name == "gbk" else name  # browsers decode both alike
    encoding = webencodings.lookup(name)
    assert encoding is not None
    if name not in _OF_SEVERAL_BYTES:
        table: Any = _table(name)  # a string is one, whatever the type stubs say
        return codecs.charmap_decode(data, "strict", table)[0]
    text = encoding.codec_info.decode(data, "replace")[0]
    if name in ("gb18030", "euc-jp") and 0 < text.count("\ufffd") < _MAX_REPAIRED:
        text = encoding.codec_info.decode(data, "whatwg")[0]
    return text.translate(_JAPANESE) if name in ("euc-jp", "iso-2022-jp") else text


_OF_SEVERAL_BYTES = (*_UNICODE, "gb18030", "big5", "euc-jp", "euc-kr", "iso-2022-jp", "shift_jis")
_JAPANESE = str.maketrans("〜‖−¢£¬", "～∥－￠￡￢")
_KOI8_U = str.maketrans("╝╬", "ўЎ")
"""Where Python's tables differ from the web's."""

_MAX_REPAIRED = 100_000
"""Errors that are looked at one by one: what has more is no text."""


@functools.lru_cache
def _table(name: str) -> str:
    """The characters of the 256 bytes of an encoding of single bytes."""
    encoding = webencodings.lookup(name)
    assert encoding is not None
    table = encoding.codec_info.decode(bytes(range(256)), "whatwg")[0]
    return table.translate(_KOI8_U) if name == "koi8-u" else table


def _instead(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that one of Python's codecs does not have, and where decoding goes on."""
    assert isinstance(error, UnicodeDecodeError)
    data, start = error.object, error.start
    if error.encoding == "charmap" and data[start] < 0xA0:  # control characters, in all of Microsoft's code pages
        return chr(data[start]), start + 1
    if error.encoding == "gb18030" and data[start] == 0x80:
        return "€", start + 1
    pair = data[start : start + 2]
    if error.encoding == "euc_jp" and len(pair) == 2 and min(pair) > 0xA0 and max(pair) < 0xFF:
        return _by_shift_jis(*pair), start + 2
    return "\ufffd", error.end


def _by_shift_jis(first: int, second: int) -> str:
    """A character of EUC-JP that is in the tables of Shift_JIS alone: circled digits and the like, of NEC and IBM."""
    row, cell = first - 0xA1, second - 0xA1
    lead = row // 2 + (0x81 if row < 62 else 0xC1)
    trail = cell + (0x9F if row % 2 else 0x40 + (cell >= 63))
    return bytes((lead, trail)).decode("cp932", "replace")[0]


codecs.register_error("whatwg", _instead)
