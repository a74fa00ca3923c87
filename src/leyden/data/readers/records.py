"""The records of a web archive as ISO 28500 has them, with every byte between them accounted for.

An archive is read as *units*: what lies between one place where reading can begin and the next. Where records are
packed one by one, a unit is a record; in a plain file, or one that is packed as a whole, it is the file. What is broken
in a unit is a Problem, and reading goes on at the next record that begins in the unit, or else at the next unit.
"""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from leyden.data.readers.packed import GZIP_MEMBER, find, is_at, is_packed, placed_chunks
from leyden.data.readers.problem import Problem

_VERSION = re.compile(rb"WARC/\d+\.\d+\s*")
_BEGIN = re.compile(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n")
_MAGIC = b"WARC/"
_BLANK = re.compile(rb"[\r\n]*")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

_HEAD_BYTES = 1 << 20
"""Of the head of a record; those that people write have about a thousand."""

_MAX_TURNS = 100
"""How often a unit is read again from its beginning, after what is broken in it."""


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        place: where in the file its unit begins; in a plain file, where it begins itself.
        number: its number in the unit, from 1.
        headers: by their names in small letters.
        length: of its block, in bytes.
        block: the block, or its first bytes where it is longer than was asked for.
    """

    place: int
    number: int
    headers: Mapping[str, str]
    length: int
    block: bytes


def records(path: Path, start: int, end: int | None, limit: int) -> Iterator[tuple[str, Record | Problem]]:
    """The records of the units that begin in a range of an archive, or what is broken there, each with its place.

    Args:
        path: the file.
        start: the first byte of the range. It may be other than 0 only where :func:`is_packed_by_record` holds.
        end: where the range ends; None: with the file.
        limit: how many bytes of a block are held.
    """
    stop = sys.maxsize if end is None else end
    with path.open("rb") as file:
        begin = find(file, GZIP_MEMBER, start) if start else 0
        if begin is None or begin >= stop:
            return
        unit: _Unit | None = _Unit(path, begin)
        # A range has what can be found from its first byte on, and what follows that and cannot: so each unit is read
        # once, even where it is broken just so that it can be read and not be found.
        while begin and unit is not None and not (unit.begins_here() and is_at(file, GZIP_MEMBER, unit.place)):
            unit = unit.following()
        while unit is not None and not (unit.place >= stop and is_at(file, GZIP_MEMBER, unit.place)):
            last = unit
            for last, found in _records_of(unit, limit):
                yield last.where, found
            unit = last.following()


def is_packed_by_record(path: Path) -> bool:
    """Whether each record is a member of gzip by itself, as archives ought to be: then a file can be cut between them.

    Raises:
        OSError: the file cannot be read.
    """
    if path.suffix.lower() != ".gz":
        return False
    unit = _Unit(path, 0)
    try:
        if unit.record(1, 0) is None or unit.record(2, 0) is not None:
            return False
    except Problem:
        return False
    return unit.following() is not None


def _records_of(unit: "_Unit", limit: int) -> Iterator[tuple["_Unit", Record | Problem]]:
    """What is in a unit, each with the unit as it has been read so far; at the end it has been read to its own."""
    number = turns = 0
    while True:
        try:
            if (record := unit.record(number + 1, limit)) is None:
                return
        except Problem as problem:
            yield unit, Problem("corrupt WARC", problem.detail or problem.reason)
            if (turns := turns + 1) == _MAX_TURNS:
                yield unit, Problem("corrupt WARC", f"broken in {_MAX_TURNS} places; the rest of the unit is not read")
                return
            unit = unit.again(unit.begin + 1)
            if not unit.find_record():
                return
        else:
            number += 1
            yield unit, record


class _Unit:
    """The unpacked bytes of a unit, in order.

    Args:
        path: the file.
        place: where in it the unit begins; 0 where the file is not packed.
        skip: how many of its unpacked bytes to pass over.

    Attributes:
        place: as given.
        begin: where the record that is being read begins, in unpacked bytes of the unit.
    """

    def __init__(self, path: Path, place: int, skip: int = 0) -> None:
        self.place, self.begin = place, skip
        self._path, self._packed = path, is_packed(path)
        self._chunks = _with_beginnings(placed_chunks(path, place if self._packed else skip))
        self._member: int | None = None  # whose bytes were held last
        self._pending: tuple[int, bytes | Problem] | None = None  # read, not yet held
        self._held, self._at = b"", 0  # bytes, and how many of them have been passed
        self._offset = 0 if self._packed else skip
        while self._packed and self._offset < skip:
            with contextlib.suppress(Problem):  # it was told when it was first met
                if not self._skip(skip - self._offset):
                    break

    @property
    def where(self) -> str:
        """The place of the record that is being read, for people."""
        if not self._packed:
            return f"byte {self.begin}"
        return f"byte {self.place}" + (f", unpacked byte {self.begin}" if self.begin else "")

    def begins_here(self) -> bool:
        """Whether it begins as a unit does."""
        try:
            return self._fill() and self._held.startswith(_MAGIC)
        except Problem as problem:
            self._pending = (self.place, problem)
            return True

    def following(self) -> "_Unit | None":
        """The unit after this one, of which the rest is passed over."""
        while True:
            try:
                while self._fill():
                    self._held, self._at = b"", 0
                break
            except Problem:
                pass  # it was told when it was first met, or lies in what the range before goes on with
        if self._pending is None:
            return None
        unit = _Unit(self._path, self._pending[0])
        unit._chunks, unit._pending = self._chunks, self._pending
        return unit

    def again(self, skip: int) -> "_Unit":
        """The same unit, from another of its bytes on."""
        return _Unit(self._path, self.place, skip)

    def find_record(self) -> bool:
        """Go to the next place where a record begins; whether there is one."""
        while True:
            if match := _BEGIN.search(self._held, self._at):
                self._pass(match.start())
                return True
            try:
                self._pass(max(len(self._held) - 16, self._at))
                if not self._fill():
                    return False
            except Problem:  # it is part of what was told
                self._pass(len(self._held))

    def record(self, number: int, limit: int) -> Record | None:
        """The next record; None at the unit's end.

        Raises:
            Problem: it is broken.
        """
        self._skip_blank()
        self.begin = self._offset
        line = self._line(_HEAD_BYTES)
        if not line:
            return None
        if not _VERSION.fullmatch(line):
            raise Problem("corrupt WARC", f"no record begins here, but {line[:40]!r}")
        headers = self._headers()
        length = headers.get("content-length", "")
        if missing := [name for name in ("warc-type", "content-length") if name not in headers]:
            raise Problem("corrupt WARC", f"a record without {', '.join(missing)}")
        if not _NUMBER.fullmatch(length):
            raise Problem("corrupt WARC", f"a Content-Length of {length[:40]!r}")
        size = int(length)
        there = self._left()  # so that a length that cannot be does not cost reading all that is there
        block = self._read(min(size, limit)) if size <= there else b""
        read = len(block) + self._skip(size - len(block)) if size <= there else there
        if read < size:
            raise Problem("corrupt WARC", f"{read:,} of the record's {size:,} bytes")
        self._skip_blank()  # where the record is packed by itself, its checksum is behind this
        place = self.place if self._packed else self.begin
        return Record(place, number, headers, size, block)

    def _headers(self) -> dict[str, str]:
        lines: list[bytes] = []
        left = _HEAD_BYTES
        while line := self._line(left):
            left -= len(line)
            if not (text := line.rstrip(b"\r\n")):
                return _by_name(lines)
            if text[:1] in b" \t" and lines:  # folded
                lines[-1] += b" " + text.strip()
            else:
                lines.append(text)
        detail = "does not end" if left else f"is longer than {_HEAD_BYTES:,} bytes"
        raise Problem("corrupt WARC", f"the head of a record {detail}")

    def _skip_blank(self) -> None:
        while True:
            match = _BLANK.match(self._held, self._at)
            assert match is not None  # it matches nothing, too
            self._pass(match.end())
            if self._at < len(self._held) or not self._fill():
                return

    def _line(self, limit: int) -> bytes:
        """A line with its end, as far as there is one in ``limit`` bytes."""
        searched = self._at
        while (end := self._held.find(b"\n", searched)) < 0 and len(self._held) - self._at < limit:
            searched = len(self._held) - self._at
            if not self._fill():
                break
        stop = min(end + 1 if end >= 0 else len(self._held), self._at + limit)
        line = self._held[self._at : stop]
        self._pass(stop)
        return line

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (self._at < len(self._held) or self._fill()):
            parts.append(self._held[self._at : self._at + size])
            size -= len(parts[-1])
            self._pass(self._at + len(parts[-1]))
        return b"".join(parts)

    def _skip(self, size: int) -> int:
        """Pass over up to ``size`` bytes; how many there were."""
        left = size
        while left > 0 and (self._at < len(self._held) or self._fill()):
            step = min(left, len(self._held) - self._at)
            self._pass(self._at + step)
            left -= step
        return size - left

    def _left(self) -> int:
        """How many bytes of the unit are left, where that can be told."""
        return sys.maxsize if self._packed else self._path.stat().st_size - self._offset

    def _pass(self, at: int) -> None:
        self._offset += at - self._at
        self._at = at

    def _fill(self) -> bool:
        """Hold more bytes of the unit, after what is left of those held; whether there are any.

        Raises:
            Problem: what follows is broken.
        """
        while found := self._pending or next(self._chunks, None):
            place, chunk = found
            broken = isinstance(chunk, Problem)
            if self._packed and self._member not in (None, place) and (broken or chunk.startswith(_MAGIC)):
                self._pending = found  # the next unit begins
                return False
            self._pending = None
            if broken:
                self._member = place
                raise chunk
            if chunk:
                self._member = place
                self._held, self._at = self._held[self._at :] + chunk, 0
                return True
        return False


def _with_beginnings(found: Iterator[tuple[int, bytes | Problem]]) -> Iterator[tuple[int, bytes | Problem]]:
    """The chunks of members of which none begins with too few bytes to tell whether a record does."""
    member, held, begun = -1, b"", False
    for place, chunk in found:
        if place != member or isinstance(chunk, Problem):
            if held:
                yield member, held
            member, held, begun = place, b"", False
        if isinstance(chunk, Problem):
            yield place, chunk
            continue
        held += chunk
        if begun or len(held) >= len(_MAGIC):
            yield place, held
            held, begun = b"", True
    if held:
        yield member, held


def _by_name(lines: list[bytes]) -> dict[str, str]:
    """Headers by their names in small letters; of those that come twice, the last."""
    pairs = (line.decode("utf-8", "replace").partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
