"""``SHA256SUMS``: what the files of a folder were when they were written, to compare with before they are read.

``sha256sum --check`` reads it, too. Hashing takes 1 to 2 GB a second and core, and files are hashed side by side.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from leyden.core.files import atomic_file

SUMS = "SHA256SUMS"

_MOST_THREADS = 8


def write_checksums(directory: Path, files: Iterable[Path]) -> None:
    """Write ``directory/SHA256SUMS`` over some files below ``directory``.

    Raises:
        UserError: the disk is full, read-only, or fails in another way.
    """
    names = sorted(file.relative_to(directory).as_posix() for file in files)
    with atomic_file(directory / SUMS) as part:
        lines = [f"{digest}  {name}\n" for name, digest in zip(names, file_hashes(directory, names), strict=True)]
        part.write_text("".join(lines), encoding="utf-8")


def read_checksums(directory: Path) -> dict[str, str]:
    """The hashes of ``directory/SHA256SUMS`` by name; empty where there is no such file, as in folders others wrote."""
    path = directory / SUMS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    pairs = (line.partition("  ") for line in lines)
    return {name: digest for digest, _, name in pairs}


def changed_files(directory: Path, names: Iterable[str] | None = None) -> list[str]:
    """Which files are missing or are not what ``directory/SHA256SUMS`` says; files that it does not list are not read.

    Args:
        directory: that has the list.
        names: look at these alone; None: at all that are listed.
    """
    listed = read_checksums(directory)
    wanted = sorted(listed if names is None else listed.keys() & set(names))
    found = file_hashes(directory, wanted)
    return [name for name, digest in zip(wanted, found, strict=True) if digest != listed[name]]


def file_hashes(directory: Path, names: Iterable[str]) -> list[str | None]:
    """The SHA-256 of each file of ``directory``, in order; None where there is no such file."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: _hash(directory / name), names))


def _hash(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
