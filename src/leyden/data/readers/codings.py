"""The codings of bodies that web servers send (Transfer-Encoding, Content-Encoding), undone as browsers undo them."""

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,16})[ \t]*(?:;[^\n]*)?\r?\n")
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_MAX_CHUNKS = 1_000_000
_FEED_BYTES = 1 << 12  # unpacked at once: at most 4 MiB
_ZSTD_FEED_BYTES = 1 << 8  # at most 8 MiB


def undo(coding: str, data: bytes, limit: int) -> tuple[bytes, str]:
    """A body without one of its codings.

    Args:
        coding: its name. One that is not known is passed over, and so is one that was declared and not applied.
        data: the body.
        limit: how much is unpacked: at most a few MiB more.

    Returns:
        What could be decoded, and why that is not all, or nothing.
    """
    name = coding.strip().lower().removeprefix("x-")
    if name == "chunked":
        return _without_chunks(data)
    parts = _UNPACKED_BY.get(name)
    if parts is None or not data or not data.startswith(_MAGIC.get(name, b"")):
        return data, ""
    return _unpacked(parts, name, data, limit)


def _without_chunks(data: bytes) -> tuple[bytes, str]:
    """A body without its chunks; extensions and trailers are passed over, and the last chunk may be missing."""
    parts: list[bytes] = []
    at = 0
    while match := _CHUNK.match(data, at):
        start, at = match.end(), match.end() + int(match[1], 16)
        if at == start:
            return b"".join(parts), ""
        parts.append(data[start:at])
        ends = data[at : at + 2]
        if len(parts) == 1 and not ends.startswith((b"\r\n", b"\n")) and not data.startswith(b"\r\n", start - 2):
            return data, ""  # a text whose first line happens to be a number
        if len(parts) > _MAX_CHUNKS:
            return b"".join(parts), f"it has more than {_MAX_CHUNKS:,} chunks"
        if at > len(data):
            return b"".join(parts), f"its last chunk has {len(parts[-1]):,} of {at - start:,} bytes"
        at += 2 if ends == b"\r\n" else ends[:1] == b"\n"
    if parts and at < len(data):
        return b"".join(parts), f"chunk {len(parts) + 1} has no length"
    return (b"".join(parts) if parts else data), ""


class _CutShort(Exception):  # noqa: N818 - it says what happened to a body
    """A packed body ends before its stream does."""


def _unpacked(parts: Callable[[bytes], Iterator[bytes]], name: str, data: bytes, limit: int) -> tuple[bytes, str]:
    import brotli
    import zstandard

    done: list[bytes] = []
    size = 0
    try:
        for part in parts(data):
            done.append(part)
            size += len(part)
            if size > limit:
                break
    except (_CutShort, zlib.error, brotli.error, zstandard.ZstdError) as error:
        if not _BINARY.search(data[:1445]) or data.startswith(_BOMS):
            return data, ""  # text, which was never packed
        return b"".join(done), f"the {name} body breaks off after {size:,} bytes ({error})"
    return b"".join(done), ""


def _by_zlib(data: bytes, wbits: int) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits)
    for at in range(0, len(data), _FEED_BYTES):
        yield unpacker.decompress(data[at : at + _FEED_BYTES])
        if unpacker.eof:
            return
    raise _CutShort("it is cut short")


def _by_gzip(data: bytes) -> Iterator[bytes]:
    return _members(data, "gzip", lambda: zlib.decompressobj(31), _FEED_BYTES)


def _members(data: bytes, name: str, unpacker_of: Callable[[], Any], feed_bytes: int) -> Iterator[bytes]:
    """All members (of gzip) or frames (of zstd); what follows the last one is passed over."""
    at = 0
    while data.startswith(_MAGIC[name], at):
        unpacker = unpacker_of()
        while not unpacker.eof:
            if at >= len(data):
                raise _CutShort("it is cut short")
            yield unpacker.decompress(data[at : at + feed_bytes])
            at = min(at + feed_bytes, len(data))
        at -= len(unpacker.unused_data)


def _by_deflate(data: bytes) -> Iterator[bytes]:
    """With the header of zlib, as the standard says, or without, as some servers send it."""
    has_header = len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return _by_zlib(data, 15 if has_header else -15)


def _by_brotli(data: bytes) -> Iterator[bytes]:
    import brotli

    unpacker, at = brotli.Decompressor(), 0
    while not unpacker.is_finished():
        piece = b""
        if unpacker.can_accept_more_data():
            if at >= len(data):
                raise _CutShort("it is cut short")
            piece = data[at : at + _FEED_BYTES]
            at += len(piece)
        yield unpacker.process(piece, output_buffer_limit=1 << 20)


def _by_zstd(data: bytes) -> Iterator[bytes]:
    import zstandard

    packer = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    return _members(data, "zstd", packer.decompressobj, _ZSTD_FEED_BYTES)


_UNPACKED_BY: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _by_gzip,
    "deflate": _by_deflate,
    "br": _by_brotli,
    "zstd": _by_zstd,
}
