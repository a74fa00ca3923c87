"""Which files are read, and as what: those that were named, those in the folders that were named, or the standard
library.
"""

import json
import os
import sysconfig
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leyden.core.errors import UserError
from leyden.data.documents import Reject

PROGRAMMING_LANGUAGES: dict[str, str] = {
    "Assembly": ".asm .s",
    "C": ".c .h",
    "C#": ".cs",
    "C++": ".cc .cpp .cxx .hh .hpp .hxx .c++ .h++ .ipp",
    "CMake": ".cmake",
    "CSS": ".css .scss .less",
    "CUDA": ".cu .cuh",
    "Clojure": ".clj .cljs .cljc",
    "Common Lisp": ".lisp .lsp",
    "D": ".d",
    "Dart": ".dart",
    "Elixir": ".ex .exs",
    "Elm": ".elm",
    "Emacs Lisp": ".el",
    "Erlang": ".erl .hrl",
    "F#": ".fs .fsi",
    "Fortran": ".f .f77 .f90 .f95 .f03 .for",
    "GLSL": ".glsl .frag .vert",
    "Go": ".go",
    "Groovy": ".groovy .gradle",
    "Haskell": ".hs .lhs",
    "Java": ".java",
    "JavaScript": ".js .mjs .cjs .jsx",
    "Julia": ".jl",
    "Kotlin": ".kt .kts",
    "Lean": ".lean",
    "Lua": ".lua",
    "MATLAB": ".m",
    "Nim": ".nim",
    "Nix": ".nix",
    "OCaml": ".ml .mli",
    "PHP": ".php",
    "Pascal": ".pas",
    "Perl": ".pl .pm",
    "PowerShell": ".ps1 .psm1",
    "Prolog": ".pro",
    "Protocol Buffers": ".proto",
    "Python": ".py .pyi .pyx",
    "R": ".r",
    "Ruby": ".rb",
    "Rust": ".rs",
    "SQL": ".sql",
    "Scala": ".scala .sc",
    "Scheme": ".scm .ss",
    "Shell": ".sh .bash .zsh",
    "Solidity": ".sol",
    "Swift": ".swift",
    "SystemVerilog": ".sv .svh",
    "TOML": ".toml",
    "Tcl": ".tcl",
    "TeX": ".tex .sty .cls",
    "Thrift": ".thrift",
    "TypeScript": ".ts .tsx",
    "VHDL": ".vhd .vhdl",
    "Verilog": ".v",
    "Vue": ".vue",
    "YAML": ".yaml .yml",
    "Zig": ".zig",
}
"""The suffixes of a source tree's files, by language; named as on GitHub."""

_LANGUAGE_OF = {suffix: name for name, suffixes in PROGRAMMING_LANGUAGES.items() for suffix in suffixes.split()}

FORMATS: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".text", ".rst", ".adoc", ".org"),
    "markdown": (".md", ".markdown", ".mdx"),
    "code": tuple(_LANGUAGE_OF),
    "html": (".html", ".htm", ".xhtml"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "warc": (".warc", ".wet"),
    "pdf": (".pdf",),
}
"""Every format, and the suffixes of its files. A file of text, code, HTML, JSON or WARC may also be packed."""

PACKED = (".gz", ".zst")
"""What a packed file's suffix is followed by."""

_NEVER_PACKED = ("parquet", "arrow", "pdf")
_FORMAT_OF = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes}

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")
"""What is read where a recipe or a command names text only (``[data] text``, ``--text``)."""

STANDARD_LIBRARY = "python:stdlib"
"""As a path of a source: the source of the running Python's standard library; with ``/`` and a path in it behind, what
is there."""

_NOT_DOCUMENTS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What lies beside the files of a saved Hugging Face dataset."""

SUFFIX_NOT_READ = "suffix not read"
UNREADABLE = "unreadable"
OUTSIDE = "link outside the folder"
LINK_TO_FOLDER = "link to a folder"
BROKEN_LINK = "broken link"
SPECIAL_FILE = "special file"
HIDDEN = "hidden"
NOT_DATA = "not data of its dataset"


@dataclass(frozen=True)
class SourceFile:
    """A file to read documents from.

    Attributes:
        path: where it is.
        name: what its documents are called: its path from the parent of what was named, with ``/`` between the parts;
            in a build, after the name of its source.
        origin: what its documents give as their ``source``: the name of a recipe's source, or by default its path.
    """

    path: Path
    name: str
    origin: str = ""

    @property
    def format(self) -> str:
        """A key of :data:`FORMATS`, by the suffix; empty where the suffix is not one that is read."""
        return format_of(self.path)


def format_of(path: Path) -> str:
    """A key of :data:`FORMATS`, by the suffix; empty where the suffix is not one that is read."""
    name = _FORMAT_OF.get(plain_suffix(path), "")
    return "" if name in _NEVER_PACKED and path.suffix.lower() in PACKED else name


def programming_language(path: Path) -> str | None:
    """The language of a file of a source tree, by its suffix."""
    return _LANGUAGE_OF.get(plain_suffix(path))


def plain_suffix(path: Path) -> str:
    """The suffix in small letters, without what the file is packed with."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def find_sources(
    paths: Iterable[str | Path], formats: Container[str] = FORMATS, suffixes: Container[str] = SUFFIXES
) -> tuple[list[SourceFile], list[Reject]]:
    """The files behind ``paths``, folders searched through, each folder in the order of names.

    Hidden files and folders are passed over. Links in a folder are followed to files inside that folder alone.

    Args:
        paths: files and folders.
        formats: which of :data:`FORMATS` are read.
        suffixes: of these, the suffixes that are read, in small letters and without those of packed files; empty: all.

    Returns:
        The files to read, and what else was found in folders, each with the reason why it is not read.

    Raises:
        UserError: a path does not exist, is a file of a suffix that is not read, or may not be looked into.
    """
    sources: list[SourceFile] = []
    skipped: list[Reject] = []
    for path in map(Path, paths):
        try:
            is_folder, exists, is_file = path.is_dir(), path.exists(), path.is_file()
        except OSError as error:
            raise _cannot(error, path) from None
        if is_folder:
            for file in _files_in(path, skipped):
                name = file.relative_to(path).as_posix()
                if is_readable(file, formats, suffixes):
                    sources.append(SourceFile(file, f"{path.resolve().name}/{name}"))
                elif file.name in _NOT_DOCUMENTS:
                    skipped.append(Reject(str(file), "", NOT_DATA, "it describes a saved dataset"))
                else:
                    skipped.append(Reject(str(file), "", SUFFIX_NOT_READ, plain_suffix(file)))
        elif not exists:
            raise UserError(f"{path} does not exist; give files or folders of text.")
        elif not is_file or not is_readable(path, formats, suffixes):
            of_formats = [suffix for name, all_of in FORMATS.items() if name in formats for suffix in all_of]
            allowed = [suffix for suffix in of_formats if not suffixes or suffix in suffixes]
            raise UserError(
                f"{path} is not a file of a kind that is read; allowed: {', '.join(allowed)} "
                "(text also as .gz or .zst)."
            )
        else:
            sources.append(SourceFile(path, path.name))
    return sources, skipped


def why_not(path: Path, folder: Path, is_folder: bool) -> tuple[str, str] | None:
    """Reason and detail why something found in a folder that was named is not looked at; None where it is.

    Who packed a folder may have put a link to any file of this machine into it, so links are followed inside it alone.
    The blobs of a snapshot in a cache of the Hugging Face hub belong to the snapshot.
    """
    try:
        if path.is_symlink():
            root, target = folder.resolve(), path.resolve()
            snapshots = [one for one in (root, *root.parents) if one.parent.name == "snapshots"]
            allowed = [root, *(one.parent.parent / "blobs" for one in snapshots)]
            if not any(target.is_relative_to(one) for one in allowed):
                return OUTSIDE, f"a link to {target}"
            if is_folder:
                return LINK_TO_FOLDER, ""
        return None if is_folder or path.is_file() else (SPECIAL_FILE if path.exists() else BROKEN_LINK, "")
    except RuntimeError:  # Python 3.11 and 3.12 say so of links that lead in a circle
        return BROKEN_LINK, "in a circle"
    except OSError as error:
        return UNREADABLE, error.strerror or str(error)


def is_readable(path: Path, formats: Container[str], suffixes: Container[str]) -> bool:
    """Whether a file is one that is read, by its name; arguments as of :func:`find_sources`."""
    name = format_of(path)
    chosen = not suffixes or plain_suffix(path) in suffixes
    return bool(name) and name in formats and chosen and path.name not in _NOT_DOCUMENTS


def _files_in(folder: Path, skipped: list[Reject]) -> Iterator[Path]:
    """Every file in a folder that may be read, whatever its suffix; ``skipped`` takes the others."""

    def unreadable(error: OSError) -> None:
        if str(error.filename) == str(folder):
            raise _cannot(error, folder)
        skipped.append(Reject(str(error.filename), "", UNREADABLE, error.strerror or str(error)))

    for directory, folders, names in os.walk(folder, onerror=unreadable):
        left_over = _left_over(Path(directory), names)
        is_folder = set(folders)
        for name in sorted([*folders, *names]):
            path = Path(directory, name)
            if name.startswith("."):
                reason = HIDDEN, "a folder" if name in is_folder else ""
            elif name in left_over:
                reason = NOT_DATA, "a cache in a saved dataset"
            else:
                reason = why_not(path, folder, name in is_folder)
            if reason is not None:
                skipped.append(Reject(str(path), "", *reason))
                is_folder.discard(name)
            elif name not in is_folder:
                yield path
        folders[:] = sorted(is_folder)


def _cannot(error: OSError, path: Path) -> UserError:
    return UserError(f"{path} cannot be looked into: {error.strerror}; allow it, or name what lies beside it.")


def _left_over(folder: Path, names: list[str]) -> set[str]:
    """Arrow files in a saved Hugging Face dataset that are not its data: caches of what was once computed from it."""
    state = folder / "state.json"
    if "state.json" not in names or "dataset_info.json" not in names or not state.is_file():
        return set()
    try:
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        data = {file["filename"] for file in files}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()
    return {name for name in names if name.endswith(".arrow") and name not in data}


def is_of_standard_library(path: str | Path) -> bool:
    """Whether a path of a source is :data:`STANDARD_LIBRARY` or begins with it."""
    return str(path).partition("/")[0] == STANDARD_LIBRARY


def standard_library_sources(path: str = STANDARD_LIBRARY) -> list[SourceFile]:
    """The Python source of the running interpreter's standard library, its tests among it where they are installed.

    Args:
        path: of all, or of a folder or a file in it: ``python:stdlib/asyncio``.

    Raises:
        UserError: this Python keeps no sources on disk, or none there.
    """
    inside = Path(path.partition("/")[2])
    root = Path(sysconfig.get_path("stdlib"))
    sources = []
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(names):
            if name.endswith(".py"):
                file = Path(directory, name)
                if file.relative_to(root).is_relative_to(inside):
                    sources.append(SourceFile(file, file.relative_to(root).as_posix()))
    if not sources and inside.parts:
        raise UserError(f"This Python's standard library has no sources in '{inside}' ({root}).")
    if not sources:
        raise UserError(f"This Python has no standard library sources in {root}; name text of your own with --text.")
    return sources
