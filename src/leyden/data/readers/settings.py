"""What a recipe says of a source: which files, and how documents are made of them."""

import importlib.util
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from leyden.core.config import Config
from leyden.core.errors import suggest
from leyden.data.sources import FORMATS


class ReadSettings(Config):
    """How files become documents."""

    text: str = Field(default="text", min_length=1)
    """The column that holds the text, in files with rows (JSON, Parquet, Arrow)."""
    rows: Literal["auto", "text", "messages", "whole"] = "auto"
    """What a row gives: its text where it has one, else its messages (``auto``); its text; or its messages; or all of
    the row, as JSON (``whole``). Messages are found as turns (``messages``, ``conversations``), or as questions and
    answers under their usual names."""
    id: str = ""
    """The column that names documents; empty: the file and the place in it do. Names may come again: each of their
    documents is treated by itself, and only looking one up by its name then finds several."""
    metadata: Literal["all", "none"] | tuple[str, ...] = "all"
    """The columns that are kept beside the text: all but bytes, none, or a list of names."""
    html: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """Who finds the main text of a page: resiliparse, more than ten times as fast, or trafilatura."""
    max_document_bytes: int = Field(default=64 << 20, ge=1)
    """A file of text, a page or a line that is longer is set aside, without being held in memory."""
    max_rejects: int = Field(default=10_000, ge=1)
    """A file is given up, and the rest of it not read, once so much of it was set aside for one reason, and no less
    than it gave documents. What is merely empty does not count."""
    max_extraction_seconds: float = Field(default=10.0, gt=0)
    """The processor's time that finding the text of a page may take: of HTML, or of a PDF file, all of whose pages may
    take thirty times as much. What takes longer is set aside; ordinary pages take a few milliseconds."""
    max_extraction_bytes: int = Field(default=1 << 30, ge=1 << 24)
    """The memory that finding the text of a page or of a PDF file may take; what takes more is set aside."""
    encoding: str = ""
    """What a file of text that is not UTF-8 is decoded with, ``cp1252`` say; empty: it is set aside."""

    @field_validator("html")
    @classmethod
    def _is_installed(cls, name: str) -> str:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'leyden[{name}]', or take resiliparse")
        return name

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            "".encode(name or "utf-8")
        except LookupError:
            raise ValueError("Python knows no such encoding; utf-16, cp1252 and shift_jis are some it knows") from None
        return name


class SourceSettings(ReadSettings):
    """Which files are read, and how documents are made of them; a recipe has one or several."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """What its documents give as their source, and what their ids begin with."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders, patterns (``crawl/**/*.warc.gz``), datasets of the Hugging Face hub (``hf://OWNER/NAME``),
    or ``python:stdlib``, the source of the running Python's standard library (``python:stdlib/json``: a part)."""
    format: str = "auto"
    """How files are read: ``auto``, by their suffixes; or ``text``, ``markdown``, ``code``, ``html``, ``jsonl``,
    ``parquet``, ``arrow``, ``warc`` or ``pdf`` for all files that are named, and of what is in folders for those with
    the suffixes of that format. A ``.json`` in a folder is configuration more often than data, and is read under
    ``jsonl`` alone."""
    suffixes: tuple[str, ...] = ()
    """Read files with these suffixes alone, ``.txt`` say, packed or not; empty: all suffixes of the format."""

    @field_validator("format")
    @classmethod
    def _is_read(cls, name: str) -> str:
        if name not in ("auto", *FORMATS):
            raise ValueError(f"no format '{name}'{suggest(name, ('auto', *FORMATS))}")
        return name

    @field_validator("suffixes")
    @classmethod
    def _are_suffixes(cls, suffixes: tuple[str, ...]) -> tuple[str, ...]:
        known = {suffix for of_format in FORMATS.values() for suffix in of_format}
        wrong = [suffix for suffix in suffixes if suffix not in known]
        if wrong:
            raise ValueError(f"no format has the suffix '{wrong[0]}'{suggest(wrong[0], known)}")
        return suffixes

    @field_validator("paths")
    @classmethod
    def _not_empty(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        if not all(paths) or not all(Path(path).parts for path in paths):
            raise ValueError("a path is empty")
        return paths
