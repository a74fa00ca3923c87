"""Which files are read: those that were named, those in the folders that were named, or the standard library."""

import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leyden.core.errors import UserError

_PLAIN = (".txt", ".md", ".py", ".jsonl")
SUFFIXES = (*(suffix + packed for suffix in _PLAIN for packed in ("", ".gz", ".zst")), ".parquet")


@dataclass(frozen=True)
class SourceFile:
    """A file to read documents from.

    Attributes:
        path: where it is.
        name: what its documents are called: its path from the parent of what was named, with ``/`` between the parts.
    """

    path: Path
    name: str

    @property
    def format(self) -> str:
        """``txt``, ``md``, ``py``, ``jsonl`` or ``parquet``: the suffix without what it is compressed with."""
        stem = self.path.name.lower().removesuffix(".gz").removesuffix(".zst")
        return stem.rpartition(".")[2]


def find_sources(paths: Iterable[str | Path]) -> tuple[list[SourceFile], list[Path]]:
    """The files behind ``paths``, folders searched through, each folder in the order of names.

    Hidden files and folders are passed over, and links to folders are not followed.

    Returns:
        The files to read, and the files found in folders whose suffix is not one that is read.

    Raises:
        UserError: a path does not exist, or is a file of a suffix that is not read.
    """
    sources: list[SourceFile] = []
    skipped: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            for file in _files_in(path):
                name = file.relative_to(path).as_posix()
                if is_readable(file):
                    sources.append(SourceFile(file, f"{path.resolve().name}/{name}"))
                else:
                    skipped.append(file)
        elif not path.exists():
            raise UserError(f"{path} does not exist; give files or folders of text.")
        elif not path.is_file() or not is_readable(path):
            raise UserError(f"{path} is not a file of a kind that is read; allowed: {', '.join(SUFFIXES)}.")
        else:
            sources.append(SourceFile(path, path.name))
    return sources, skipped


def is_readable(path: Path) -> bool:
    """Whether the suffix of ``path`` is one that is read."""
    return path.name.lower().endswith(SUFFIXES)


def _files_in(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(directory, name)
            if not name.startswith(".") and file.is_file():
                yield file


def standard_library_sources() -> list[SourceFile]:
    """The Python source of the running interpreter's standard library, its tests among it where they are installed.

    Raises:
        UserError: this Python keeps no sources on disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = []
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(names):
            if name.endswith(".py"):
                file = Path(directory, name)
                sources.append(SourceFile(file, file.relative_to(root).as_posix()))
    if not sources:
        raise UserError(f"This Python has no standard library sources in {root}; name text of your own with --text.")
    return sources
