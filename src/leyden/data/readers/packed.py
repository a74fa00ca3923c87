"""The bytes and lines of files that may be packed (gzip, zstd), a piece at a time and whatever is broken in them."""

import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from leyden.data.readers.problem import Problem, too_long

READ_BYTES = 1 << 20

MAX_RATIO = 1032
"""Of a packed file's bytes unpacked to those packed, beyond the first :data:`FREE_BYTES`: gzip reaches no more. Zstd
does, with one byte over and over; the text that people keep is packed at 3 to 20."""

FREE_BYTES = 4 << 20

_FIRST_BYTES = 64
"""Of a member, and of one that unpacks to more than usual, unpacked at once: at most 2 MiB, of either kind."""

_USUAL_RATIO = 100

GZIP_MEMBER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)
"""The header of a member: method 8; flags below 32; any time; "best", "fastest" or neither; a known operating system.
Random bytes match it once in 200 GB."""

ZSTD_FRAME = re.compile(rb"\x28\xb5\x2f\xfd[^\x08-\x0f\x18-\x1f\x28-\x2f\x38-\x3f]|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
"""The header of a frame whose reserved bit is 0, or of one that is skipped."""


@dataclass(frozen=True)
class Packing:
    """A kind of packed file: members (gzip) or frames (zstd), one after the other.

    Attributes:
        name: for messages.
        member: what a member begins with.
        feed_bytes: handed to the unpacker at once, as a rule; so few that the most that they can unpack to fits in
            memory.
        unpacker: makes an object with ``decompress``, ``eof`` and ``unused_data`` for one member.
        error: what it raises.
    """

    name: str
    member: re.Pattern[bytes]
    feed_bytes: int
    unpacker: Callable[[], Any]
    error: type[Exception]


def _gzip(_: BinaryIO) -> Packing:
    return Packing("gzip", GZIP_MEMBER, 1 << 14, lambda: zlib.decompressobj(31), zlib.error)  # at most 1032 to 1


def _zstd(file: BinaryIO) -> Packing:
    import zstandard

    # A block of 4 bytes can unpack to 128 KiB; windows of up to 2 GiB (--long=31) are usual in archives of forums.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31, dict_data=_dictionary(file))
    return Packing("zstd", ZSTD_FRAME, 1 << 12, unpacker.decompressobj, zstandard.ZstdError)


def _dictionary(file: BinaryIO) -> Any:
    """The dictionary that all frames of a file need, if its first frame holds one, as in archives of the web
    (https://iipc.github.io/warc-specifications/specifications/warc-zstd/): as it is, or packed itself.
    """
    import zstandard

    file.seek(0)
    magic, size = file.read(4), int.from_bytes(file.read(4), "little")
    if magic != _DICTIONARY_FRAME or size > _DICTIONARY_BYTES:
        return None
    data = file.read(size)
    if data.startswith(_FRAME):
        try:
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=_DICTIONARY_BYTES)
        except zstandard.ZstdError:
            return None  # the frames will say that they need it
    return zstandard.ZstdCompressionDict(data)


_FRAME, _DICTIONARY_FRAME = b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18"
_DICTIONARY_BYTES = 16 << 20

_PACKINGS: dict[str, Callable[[BinaryIO], Packing]] = {".gz": _gzip, ".zst": _zstd}


def chunks(path: Path, start: int = 0) -> Iterator[bytes | Problem]:
    """The bytes of a file, unpacked by its suffix, in pieces.

    What is broken in a packed file gives a Problem, and reading goes on at the next member that begins; so does a file
    that unpacks to far more than anything but an attack does, which is read no further.

    Args:
        path: the file.
        start: the first byte; in a packed file, where a member begins.
    """
    return (chunk for _, chunk in placed_chunks(path, start))


def placed_chunks(path: Path, start: int = 0) -> Iterator[tuple[int, bytes | Problem]]:
    """As :func:`chunks`, each with its place: in a packed file, of the member that it is from; else, its own."""
    packing = _PACKINGS.get(path.suffix.lower())
    with path.open("rb") as file:
        if packing is not None:
            yield from _bounded(_unpacked(file, packing(file), start), file, start)
        else:
            file.seek(start)
            while chunk := file.read(READ_BYTES):
                yield start, chunk
                start += len(chunk)


def is_packed(path: Path) -> bool:
    """Whether a file is unpacked as it is read."""
    return path.suffix.lower() in _PACKINGS


def whole(path: Path, limit: int) -> bytes:
    """All bytes of a file, unpacked.

    Raises:
        Problem: it is broken, or longer than ``limit``.
    """
    parts: list[bytes] = []
    size = 0
    for chunk in chunks(path):
        if isinstance(chunk, Problem):
            raise chunk
        size += len(chunk)
        if size > limit:
            raise too_long(limit)
        parts.append(chunk)
    return b"".join(parts)


def _unpacked(file: BinaryIO, packing: Packing, start: int) -> Iterator[tuple[int, bytes | Problem]]:
    while True:
        try:
            start = yield from _member(file, packing, start)
            if start < 0:
                return
        except packing.error as error:
            yield start, Problem(f"corrupt {packing.name}", str(error), f"compressed byte {start}")
            found = find(file, packing.member, start + 1)
            if found is None:
                return
            start = found


def _bounded(
    found: Iterator[tuple[int, bytes | Problem]], file: BinaryIO, start: int
) -> Iterator[tuple[int, bytes | Problem]]:
    """What is found in a packed file that is read from ``start`` on, until it is more than a file may unpack to."""
    size = 0
    for place, chunk in found:
        yield place, chunk
        size += 0 if isinstance(chunk, Problem) else len(chunk)
        packed = file.tell() - start
        if size > FREE_BYTES + MAX_RATIO * packed:
            detail = f"{packed:,} bytes are {size:,} or more; the rest is not read"
            yield place, Problem("unpacks to too much", detail, f"compressed byte {place}")
            return


def _member(file: BinaryIO, packing: Packing, start: int) -> Generator[tuple[int, bytes], None, int]:
    """The bytes of the member at ``start``; returns where the next one begins, or -1 at the end of the file."""
    file.seek(start)
    position, unpacker, feed_bytes = start, packing.unpacker(), _FIRST_BYTES
    while packed := file.read(feed_bytes):
        if position == start and packing.name == "gzip":  # zeros may follow a member, to the end of a tape's block
            start += len(packed) - len(packed := packed.lstrip(b"\0"))
            position = start
        if not packed:
            continue
        position += len(packed)
        data = unpacker.decompress(packed)
        feed_bytes = packing.feed_bytes if len(data) <= _USUAL_RATIO * len(packed) else _FIRST_BYTES
        yield start, data
        if unpacker.eof:
            return position - len(unpacker.unused_data)
    if position > start:
        raise packing.error("the file ends within it")
    return -1


def find(file: BinaryIO, pattern: re.Pattern[bytes], start: int, *, longest: int = 16) -> int | None:
    """The first place from ``start`` where ``pattern``, which matches at most ``longest`` bytes, does."""
    file.seek(start)
    held, place = b"", start
    while chunk := file.read(READ_BYTES):
        held += chunk
        if match := pattern.search(held):
            return place + match.start()
        place += max(len(held) - longest, 0)
        held = held[-longest:]
    return None


def is_at(file: BinaryIO, pattern: re.Pattern[bytes], place: int, *, longest: int = 16) -> bool:
    """Whether ``pattern`` matches at a place, as :func:`find` finds it."""
    file.seek(place)
    return pattern.match(file.read(longest)) is not None


def lines(pieces: Iterable[bytes | Problem], limit: int, start: int = 0) -> Iterator[tuple[int, bytes | Problem]]:
    """Lines without their ends, each with the place of its first byte.

    A line of more than ``limit`` bytes gives a Problem and is not held. After a Problem in ``pieces`` the line that it
    broke is given up.

    Args:
        pieces: consecutive bytes, as of :func:`chunks`.
        limit: in bytes.
        start: the place of the first byte.
    """
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, Problem):
            yield start, piece
            held, size = [], 0
            continue
        *ended, rest = piece.split(b"\n")
        for part in ended:
            size += len(part)
            yield start, b"".join((*held, part)) if size <= limit else too_long(limit)
            start += size + 1
            held, size = [], 0
        size += len(rest)
        if size <= limit:
            held.append(rest)
        else:
            held = []
    if size:
        yield start, b"".join(held) if size <= limit else too_long(limit)


def line_range(path: Path, start: int, end: int, limit: int) -> Iterator[tuple[int, bytes | Problem]]:
    """The lines of a file, not packed, that begin at bytes ``start`` to ``end`` (excluded), as of :func:`lines`."""
    first = 0 if start == 0 else _next_line(path, start, end)
    if first is None:
        return
    for place, line in lines(chunks(path, first), limit, first):
        if place >= end:
            return
        yield place, line


def _next_line(path: Path, start: int, end: int) -> int | None:
    """Where the first line begins that begins at ``start`` or later; None where that is not before ``end``."""
    place = start - 1
    for chunk in chunks(path, place):
        assert isinstance(chunk, bytes)  # the file is not packed
        found = chunk.find(b"\n")
        if found >= 0:
            return place + found + 1 if place + found + 1 < end else None
        place += len(chunk)
        if place >= end:
            return None
    return None
