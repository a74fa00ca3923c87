"""Files that are one document each: text, Markdown, and the files of a source tree."""

import codecs
import io
import tokenize
from collections.abc import Iterator

from leyden.data.documents import Document
from leyden.data.readers.packed import whole
from leyden.data.readers.piece import Found, Piece
from leyden.data.readers.problem import Problem, decode
from leyden.data.readers.settings import ReadSettings
from leyden.data.sources import programming_language

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


_OF_NAMES = ("punycode", "idna")
"""Codecs for the names of hosts: the time that they take grows with the square of what they are given."""


def read_text(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The file, UTF-8, UTF-16 with a byte order mark, or of the fallback encoding. One with a NUL byte is set aside as
    binary, unless it is UTF-16 or UTF-32 by that encoding.
    """
    data = whole(piece.source.path, settings.max_document_bytes)
    if data.startswith(_UTF_16) and not data.startswith(codecs.BOM_UTF32_LE):
        data = _decode_utf_16(data).encode()
    if not settings.encoding.lower().startswith(("utf-16", "utf_16", "utf-32", "utf_32")):
        _not_binary(data)
    yield "", _document(piece, decode(data, settings.encoding), {})


def read_code(piece: Piece, settings: ReadSettings) -> Iterator[Found]:
    """The file, with its programming language in its metadata; Python is decoded by its coding cookie."""
    language = programming_language(piece.source.path)
    data = whole(piece.source.path, settings.max_document_bytes)
    _not_binary(data)
    text = _decode_python(data) if language == "Python" else decode(data, settings.encoding)
    yield "", _document(piece, text, {"programming_language": language} if language else {})


def _document(piece: Piece, text: str, metadata: dict[str, str]) -> Document:
    return Document(piece.source.name, text, piece.source.origin or str(piece.source.path), metadata=metadata)


def _not_binary(data: bytes) -> None:
    if b"\0" in data:
        raise Problem("binary", "a NUL byte", f"byte {data.index(0)}")


def _decode_utf_16(data: bytes) -> str:
    try:
        return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise Problem("not UTF-8", f"but UTF-16: {error.reason}", f"byte {error.start}") from None


def _decode_python(data: bytes) -> str:
    """Decode Python source by its coding cookie (PEP 263), UTF-8 where it has none."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if codecs.lookup(encoding).name in _OF_NAMES:
            raise LookupError(f"{encoding} is an encoding of names, not of text")
        text = data.decode(encoding)
        text.encode()  # some codecs, such as unicode_escape, give lone surrogates
    except (SyntaxError, LookupError, ValueError) as error:
        place = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise Problem("not UTF-8", str(error), place) from None
    return text
