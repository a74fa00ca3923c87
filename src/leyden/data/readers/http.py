"""Answers of web servers as archives keep them, read as leniently as browsers read them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from leyden.data.readers.codings import undo
from leyden.data.readers.problem import Problem, too_long

_STATUS = re.compile(rb"(?:HTTP(?:/\d+(?:\.\d+)?)?|ICY)[ \t]+(\d{3})\b.*|HTTP/.*", re.IGNORECASE)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:(.*)", re.DOTALL)
_USUAL = ("content-", "date", "server", "x-", "cache-", "set-cookie", "last-modified", "etag", "connection")
"""What the names of some field begin with, in any head: so a text whose first line has a colon is not taken for one."""

_TYPE = re.compile(r"([!#$%&'*+.^_`|~\w-]+/[!#$%&'*+.^_`|~\w-]+)\s*(?:;(.*))?", re.ASCII | re.DOTALL)
_CHARSET = re.compile(r";\s*charset\s*=\s*(?:\"([^\"]*)\"?|([^;]*))", re.IGNORECASE)
_BETWEEN_TYPES = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # commas outside of quotation marks
_TYPE_CHARACTERS = 1000
_UNKNOWN = ("*/*", "unknown/unknown", "application/unknown")
_HTML = re.compile(
    rb"\s*(?:<!--|<(?:!doctype\s+html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)[\s>])",
    re.IGNORECASE,
)
_XHTML = re.compile(rb"<html[\s>]", re.IGNORECASE)
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_BOMS = (b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe")
_SNIFFED_BYTES = 1445  # as browsers do
_HEAD_BYTES = 1 << 18  # as browsers allow
_MAX_CODINGS = 16


@dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        status: its code; None where it has none.
        fields: names, in small letters, and values of its head, in order.
        body: its body, with all codings.
    """

    status: int | None
    fields: Sequence[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> str:
        """The values of all fields of a name, with commas between."""
        return ",".join(value for other, value in self.fields if other == name)


def parse_response(data: bytes) -> Response:
    """An answer from its bytes, whatever they are.

    Lines may end without a carriage return, the status line may be missing or of another protocol, names may stand
    before a space, values may go on in the next line, and a head may be missing altogether (HTTP/0.9).

    Raises:
        Problem: its head has no end.
    """
    start = len(data) - len(data.lstrip(b"\r\n"))
    line, after = _line(data, start)
    if match := _STATUS.fullmatch(line):
        fields, body = _head(data, after)
        if body < 0:
            raise Problem("corrupt HTTP", f"a head of more than {_HEAD_BYTES:,} bytes")
        return Response(int(match[1]) if match[1] else None, fields, data[body:])
    if _FIELD.fullmatch(line):
        fields, body = _head(data, start)
        if body >= 0 and any(name.startswith(_USUAL) for name, _ in fields):
            return Response(None, fields, data[body:])
    return Response(None, (), data)


def _line(data: bytes, start: int) -> tuple[bytes, int]:
    """The line from ``start``, without its end, and where the next begins."""
    end = data.find(b"\n", start)
    end = len(data) if end < 0 else end
    return data[start:end].rstrip(b"\r"), end + 1


def _head(data: bytes, start: int) -> tuple[list[tuple[str, str]], int]:
    """The fields of a head, and where the body begins: after an empty line, or where HTML does without one; -1 where
    the head is too long.
    """
    fields: list[list[bytes]] = []
    end = start + _HEAD_BYTES
    while start < len(data):
        if start > end:
            return [], -1
        line, after = _line(data, start)
        if not line:
            return _decoded(fields), after
        if line.startswith(b"<"):
            break
        if line[:1] in b" \t" and fields:
            fields[-1].append(line.strip())
        elif match := _FIELD.fullmatch(line):
            fields.append([match[1].lower(), match[2].strip()])
        start = after
    return _decoded(fields), start


def _decoded(fields: list[list[bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("ascii"), b" ".join(values).strip().decode("latin-1")) for name, *values in fields]


def declared_type(value: str) -> tuple[str, str]:
    """The type that a server gave, in small letters and without parameters, and its charset; or nothing.

    Of several types the last that is one counts (https://fetch.spec.whatwg.org/#concept-header-extract-mime-type).

    Args:
        value: of Content-Type.
    """
    essence = charset = ""
    for part in _BETWEEN_TYPES.split(value[:_TYPE_CHARACTERS]):
        match = _TYPE.fullmatch(part.strip())
        if not match or match[1].lower() in _UNKNOWN:
            continue
        given = _CHARSET.search(";" + (match[2] or ""))
        named = (given[1] or given[2] or "").strip() if given else ""
        if match[1].lower() != essence:
            essence, charset = match[1].lower(), named
        elif named:
            charset = named
    return essence, charset


def sniffed_type(body: bytes) -> str:
    """The type of a body whose server gave none, by its first bytes (https://mimesniff.spec.whatwg.org, section 7.1):
    HTML, plain text, or binary.
    """
    head = body[:_SNIFFED_BYTES]
    bom = next((bom for bom in _BOMS if head.startswith(bom)), b"")
    if bom:
        head = head.removeprefix(bom).replace(b"\0", b"")
    if _HTML.match(head) or (head.lstrip().startswith(b"<?xml") and _XHTML.search(head)):
        return "text/html"
    return "application/octet-stream" if _BINARY.search(head) and not bom else "text/plain"


def decoded_body(response: Response, limit: int) -> tuple[bytes, str]:
    """The body without its codings, and where it broke off, or nothing.

    A coding that is declared and not applied is passed over, as browsers and archives' players do, and so is one that
    is not known. What was decoded before a body breaks off is kept.

    Raises:
        Problem: it is longer than ``limit``, with or without one of its codings.
    """
    body, broken = response.body, ""
    for name in ("transfer-encoding", "content-encoding"):
        for coding in reversed(response.all(name).split(",")[:_MAX_CODINGS]):
            body, why = undo(coding, body, limit)
            if len(body) > limit:
                raise too_long(limit)
            broken = broken or why
    return body, broken
