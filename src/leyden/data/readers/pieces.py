"""Sources cut into shards of pieces: files, ranges of bytes (lines, web archives), ranges of Parquet's row groups."""

import functools
import glob
from collections.abc import Container, Iterator
from pathlib import Path

from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.readers.columns import row_group_ranges
from leyden.data.readers.jsonl import is_lines
from leyden.data.readers.piece import Piece
from leyden.data.readers.records import is_packed_by_record
from leyden.data.readers.settings import SourceSettings
from leyden.data.sources import (
    FORMATS,
    HIDDEN,
    PACKED,
    SourceFile,
    find_sources,
    is_of_standard_library,
    plain_suffix,
    standard_library_sources,
    why_not,
)


def plan_shards(source: SourceSettings, shard_bytes: int, skipped: list[Reject] | None = None) -> list[list[Piece]]:
    """A source's files as shards of up to ``shard_bytes``, in the order of paths and names.

    The same documents with the same ids come out whatever ``shard_bytes`` is. What can be cut is lines of JSON that are
    not packed, Parquet, and web archives packed record by record; another file that is larger is a shard by itself.

    Args:
        source: which files, and how they are read.
        shard_bytes: of the files.
        skipped: takes what was found in folders and is not read, with reasons.

    Raises:
        UserError: a path does not exist or is of a kind that is not read, or two files have the same name.
    """
    shards: list[list[Piece]] = []
    room = 0
    for file in source_files(source, [] if skipped is None else skipped):
        for piece in _cut(file, source, shard_bytes):
            weight = max(piece.num_bytes, 1 << 10)  # a file costs something even where it is empty
            if weight > room:
                shards.append([])
                room = shard_bytes
            shards[-1].append(piece)
            room -= weight
    return shards


def source_files(source: SourceSettings, skipped: list[Reject]) -> list[SourceFile]:
    """The files of a source, each once; ``skipped`` takes what was found in folders and is not read.

    Raises:
        UserError: a path does not exist or is of a kind that is not read, or two files have the same name.
    """
    formats = FORMATS if source.format == "auto" else (source.format,)
    named: dict[str, SourceFile] = {}
    seen: set[Path] = set()
    for path in source.paths:
        for file in _files_of(path, source, formats, skipped):
            if file.path.absolute() in seen:
                continue
            seen.add(file.path.absolute())
            name = f"{source.name}/{file.name}"
            other = named.setdefault(name, SourceFile(file.path, name, source.name))
            if other.path is not file.path:
                raise UserError(
                    f"Source '{source.name}': {other.path} and {file.path} would both be called {name}, and so would "
                    "their documents; name the folder above both, or make two sources of them."
                )
    return list(named.values())


def _files_of(path: str, source: SourceSettings, formats: Container[str], skipped: list[Reject]) -> list[SourceFile]:
    format = source.format
    if is_of_standard_library(path):
        return standard_library_sources(path)
    if path.startswith("hf://"):
        from leyden.data.readers.hub import DATA_FORMATS, download

        return download(path, DATA_FORMATS if format == "auto" else (format,), skipped)
    is_pattern = glob.has_magic(path) and not Path(path).exists()
    files: list[SourceFile] = []
    for name in _matches(path, skipped) if is_pattern else [Path(path)]:
        if format != "auto" and name.is_file():  # whatever its suffix
            files.append(SourceFile(name, name.name))
            continue
        found, not_read = find_sources([name], formats, source.suffixes)
        skipped += not_read
        # A source tree is full of JSON that is no data: under "auto" it is read where it is named.
        in_tree = format == "auto" and name.is_dir()
        for file in found:
            if in_tree and plain_suffix(file.path) == ".json":
                skipped.append(Reject(str(file.path), "", "JSON in a folder", 'format = "jsonl" reads it'))
            else:
                files.append(file)
    return files


def _matches(pattern: str, skipped: list[Reject]) -> list[Path]:
    """The files and folders that match; links are followed inside the folder that the pattern begins with alone."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    folder, rest = Path(*parts[:fixed]), parts[fixed:]
    try:
        # Path.glob goes through no links at "**", unlike glob.glob, which links in a circle keep busy for ever.
        found = sorted(folder.glob(str(Path(*rest))))
    except (ValueError, OSError) as error:
        raise UserError(f"{pattern} cannot be searched for: {error}.") from None
    asked = any(part.startswith(".") for part in rest)

    @functools.cache
    def reason_of(path: Path) -> tuple[str, str] | None:
        if path == folder:
            return None
        if path.name.startswith(".") and not asked:
            return HIDDEN, ""
        return reason_of(path.parent) or why_not(path, folder, path.is_dir())

    skipped += [Reject(str(path), "", *reason) for path in found if (reason := reason_of(path)) is not None]
    if not found:
        raise UserError(f"No file matches {pattern}.")
    return [path for path in found if reason_of(path) is None]


def _cut(file: SourceFile, settings: SourceSettings, shard_bytes: int) -> Iterator[Piece]:
    name = file.format if settings.format == "auto" else settings.format
    try:
        size = file.path.stat().st_size
        can_be_cut = _can_be_cut(file.path, name)
    except Exception:  # of the disk, or of a library; reading it will say so
        size, can_be_cut = 0, False
    if can_be_cut and name == "parquet":
        ranges = row_group_ranges(file.path, size, shard_bytes) if size > shard_bytes else [(size, 0, None)]
        yield from (Piece(file, name, *rest) for rest in ranges)
    elif can_be_cut:
        for start in range(0, max(size, 1), shard_bytes):
            end = min(start + shard_bytes, size)
            yield Piece(file, name, end - start, start, end)
    else:
        yield Piece(file, name, size)


def _can_be_cut(path: Path, format: str) -> bool:
    """Whether ranges of a file can be read by themselves; by what it is, not by its size, as ids depend on it.

    Raises:
        OSError: the file cannot be read.
    """
    packed = path.suffix.lower() if path.suffix.lower() in PACKED else ""
    if format == "jsonl" and not packed:
        return is_lines(path)
    if format == "warc" and packed == ".gz":
        return is_packed_by_record(path)
    return format == "parquet"
