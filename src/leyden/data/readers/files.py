"""Files to documents. What cannot be read is set aside with its file, place and reason, and reading goes on."""

import gzip
import io
import json
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from leyden.core.errors import UserError
from leyden.data.documents import Document, Reject
from leyden.data.sources import SUFFIXES, SourceFile, find_sources

_READ_BYTES = 1 << 20


class _Unreadable(Exception):  # noqa: N818 - carries a Reject's fields to where the file is known
    """A document, or the rest of a file, that is set aside."""

    def __init__(self, reason: str, detail: str = "", place: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail, self.place = reason, detail, place


def read_documents(paths: Iterable[str | Path | SourceFile], rejects: list[Reject]) -> Iterator[Document]:
    """Read every document of ``paths``, in an order that depends on the names alone.

    Args:
        paths: files and folders (.txt, .md, .py, .jsonl, each also .gz or .zst, and .parquet), or sources already
            found. A row of .jsonl or .parquet gives one document, its ``text``; any other file gives one.
        rejects: takes what is set aside, as it is met.

    Raises:
        UserError: a path does not exist or is of a kind that is not read; no path holds any such file; or nothing in
            them could be read.
    """
    sources: list[SourceFile] = []
    for path in paths:
        if isinstance(path, SourceFile):
            sources.append(path)
            continue
        found, skipped = find_sources([path])
        sources += found
        rejects += [Reject(str(file), "", "suffix not read") for file in skipped]
    if not sources:
        raise UserError(f"There is nothing to read: the folders named hold no file of {', '.join(SUFFIXES)}.")
    num_documents = 0
    for source in sources:
        for document in _read_source(source, rejects):
            num_documents += 1
            yield document
    if not num_documents:
        first = next(reject for reject in rejects if reject.reason != "suffix not read")
        raise UserError(f"None of {len(sources)} files gave a document. The first that was set aside: {first}.")


def _read_source(source: SourceFile, rejects: list[Reject]) -> Iterator[Document]:
    path = str(source.path)
    reader = {"jsonl": _jsonl_rows, "parquet": _parquet_rows}.get(source.format, _whole_file)
    row = -1
    try:
        for row, text in reader(source):
            if isinstance(text, _Unreadable):
                rejects.append(Reject(path, text.place, text.reason, text.detail))
            elif not text:
                rejects.append(Reject(path, f"row {row}" if row else "", "empty"))
            else:
                yield Document(f"{source.name}:{row}" if row else source.name, text, path)
        if row < 0:
            rejects.append(Reject(path, "", "empty", "no rows"))
    except _Unreadable as problem:
        rejects.append(Reject(path, problem.place, problem.reason, problem.detail))
    except OSError as error:
        rejects.append(Reject(path, "", "unreadable", error.strerror or str(error)))


# A reader yields (row, text) or (row, why there is none); row is 0 where the file is one document.
_Rows = Iterator[tuple[int, str | _Unreadable]]


def _whole_file(source: SourceFile) -> _Rows:
    data = b"".join(_chunks(source.path))
    if b"\0" in data:
        raise _Unreadable("binary", "a NUL byte", f"byte {data.index(0)}")
    if source.format == "py":
        yield 0, _decode_python(data)
    else:
        yield 0, _decode(data)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unreadable("not UTF-8", error.reason, f"byte {error.start}") from None


def _decode_python(data: bytes) -> str:
    """Decode Python source by its coding cookie (PEP 263), UTF-8 where it has none."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        text.encode()  # some codecs, such as unicode_escape, give lone surrogates
    except (SyntaxError, LookupError, ValueError) as error:
        place = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise _Unreadable("not UTF-8", str(error), place) from None
    return text


def _jsonl_rows(source: SourceFile) -> _Rows:
    for number, line in enumerate(_lines(source.path), 1):
        if line.strip():
            try:
                yield number, _json_text(line)
            except _Unreadable as problem:
                problem.place = f"line {number}"
                yield number, problem


def _json_text(line: bytes) -> str:
    """The ``text`` of one JSON line."""
    try:
        row = json.loads(_decode(line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise _Unreadable("not JSON", str(error)) from None
    if not isinstance(row, dict):
        raise _Unreadable("not a JSON object", type(row).__name__)
    if "text" not in row:
        raise _Unreadable('no "text"', f"keys: {', '.join(map(str, row)) or 'none'}")
    return _checked(row["text"])


def _checked(text: Any) -> str:
    """``text`` if it is one."""
    if not isinstance(text, str):
        raise _Unreadable('"text" is not a string', type(text).__name__)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Unreadable("not UTF-8", f"a lone surrogate at character {error.start}") from None
    return text


def _parquet_rows(source: SourceFile) -> _Rows:
    try:
        with pq.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise _Unreadable('no "text"', f"columns: {', '.join(names)}")
            kind = file.schema_arrow.field("text").type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise _Unreadable('"text" is not a string', f"a column of type {kind}")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                # As bytes, for a writer may have put something into a string column that is not UTF-8.
                for data in batch.column(0).cast(kind).cast(pa.large_binary()).to_pylist():
                    number += 1
                    yield number, _parquet_text(data, number)
    except pa.ArrowException as error:
        raise _Unreadable("corrupt parquet", str(error)) from None


def _parquet_text(data: bytes | None, number: int) -> str | _Unreadable:
    if data is None:
        return _Unreadable('"text" is not a string', "null", f"row {number}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return _Unreadable("not UTF-8", error.reason, f"row {number}")


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that may be compressed, without their ends."""
    rest = b""
    for chunk in _chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed by its suffix, in pieces.

    Raises:
        _Unreadable: the compressed data is corrupt, or ends early.
    """
    with path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            yield from _gzip_chunks(file)
        elif path.suffix.lower() == ".zst":
            yield from _zstd_chunks(file)
        else:
            yield from iter(lambda: file.read(_READ_BYTES), b"")


def _gzip_chunks(file: IO[bytes]) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from iter(lambda: unpacked.read(_READ_BYTES), b"")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Unreadable("corrupt gzip", str(error), f"compressed byte {file.tell()}") from None


def _zstd_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Frame after frame; the library's own stream reader takes a truncated file for a finished one."""
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    started = False
    try:
        while packed := file.read(_READ_BYTES):
            while packed:
                yield unpacker.decompress(packed)
                started = not unpacker.eof
                packed = unpacker.unused_data if unpacker.eof else b""
                if unpacker.eof:
                    unpacker = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise _Unreadable("corrupt zstd", str(error), f"compressed byte {file.tell()}") from None
    if started:
        raise _Unreadable("corrupt zstd", "the file ends within a frame", f"compressed byte {file.tell()}")
