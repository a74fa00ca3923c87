"""Completion marks: small files that say that other files are whole, with their sizes and hashes.

A mark is written once its files are on the disk, and removed before one of them changes. It bears a hash of itself. So
what a mark names was whole when it was written, and :meth:`Mark.fault` says whether it still is.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from leyden.core.files import atomic_file, discard
from leyden.core.log import progress, say

if TYPE_CHECKING:  # Daft, which training does without
    from leyden.data.engine import DataEngine

Item = TypeVar("Item")
Result = TypeVar("Result")

_BLOCK_BYTES = 1 << 20
_TOLD = 3
"""Damaged files that are named one by one."""


def hash_file(path: Path) -> str:
    """XXH3-64 of a file's bytes, in hexadecimal: some 10 GB a second, so what it costs is the reading."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Mark:
    """What a mark says.

    Attributes:
        path: of the mark.
        facts: that go with the files; values that JSON can hold.
        files: size and hash of each file, by its path from the mark's folder.
    """

    path: Path
    facts: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]

    def fault(self, *, unread: Collection[Path] = ()) -> str | None:
        """What is wrong with the first file that is not as it was, in words; None: all are.

        Args:
            unread: files that will not be read, of which the size is enough.
        """
        skipped = {_relative(path, self.path.parent) for path in unread}
        for name, (size, digest) in self.files.items():
            path = Path(os.path.normpath(self.path.parent / name))
            try:
                found = path.stat().st_size
                if found != size:
                    return f"{path} is damaged: it has {found:,} bytes instead of {size:,}"
                if name not in skipped and hash_file(path) != digest:
                    return f"{path} is damaged: it is not what was written"
            except FileNotFoundError:
                return f"{path} is missing"
            except OSError as error:
                return f"{path} cannot be read: {error.strerror}"
        return None


def write_mark(path: Path, files: Iterable[Path], facts: Mapping[str, Any] | None = None) -> None:
    """Mark ``files``, which are on the disk."""
    named = {_relative(file, path.parent): [file.stat().st_size, hash_file(file)] for file in files}
    said = {"facts": dict(facts or {}), "files": named}
    with atomic_file(path) as part:
        part.write_text(json.dumps({**said, "hash": _hash_of(said)}), encoding="utf-8")


def read_mark(path: Path) -> Mark | None:
    """The mark in ``path``; None where there is none, or it is damaged, or of a version without hashes."""
    try:
        said = json.loads(path.read_bytes())
        found = said.pop("hash")
        if found != _hash_of(said):
            return None
        return Mark(path, said["facts"], {name: (size, digest) for name, (size, digest) in said["files"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def map_missing(
    engine: "DataEngine", task: Callable[[Item], Iterable[Path]], items: Sequence[tuple[Path, Item]], title: str
) -> None:
    """Run ``task`` on the items whose files are not there yet, or not as they were; what is damaged is named.

    Args:
        engine: runs the tasks.
        task: a picklable function of one item, which returns the files that it wrote.
        items: where the mark of each is put, and the item.
        title: of the progress bar.
    """
    marks = [read_mark(path) for path, _ in items]
    faults = side_by_side(lambda mark: mark and mark.fault(), marks)
    tell_damage(fault for fault in faults if fault)
    pairs = zip(marks, faults, strict=True)
    missing = [item for item, (mark, fault) in zip(items, pairs, strict=True) if mark is None or fault]
    with progress(title, len(items)) as bar:
        bar.advance(len(items) - len(missing))
        for _ in engine.map(_Marked(task), missing):
            bar.advance()


@dataclass(frozen=True)
class _Marked:
    """A task, and the mark of what it wrote."""

    task: Callable[[Any], Iterable[Path]]

    def __call__(self, item: tuple[Path, Any]) -> None:
        path, given = item
        discard(path)
        write_mark(path, self.task(given))


def side_by_side(task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``task`` of each item, in threads: for what waits for the disk and hashes."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(task, items))


def tell_damage(faults: Iterable[str]) -> None:
    """Name what is damaged, and say that it is made again."""
    named = list(faults)
    for fault in named[:_TOLD]:
        say(f"{fault}; it is made again")
    if len(named) > _TOLD:
        say(f"so are {len(named) - _TOLD:,} more")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _hash_of(said: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(said, sort_keys=True).encode())
