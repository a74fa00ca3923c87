"""A row of a file with columns (JSON, Parquet, Arrow) to a document."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from leyden.data.documents import Document, Message
from leyden.data.readers.nested import COLUMNS, is_nested, turns_of
from leyden.data.readers.problem import MAX_DEPTH, Problem
from leyden.data.readers.settings import ReadSettings
from leyden.data.sources import SourceFile

URLS = ("url", "uri", "link")
TIMES = ("time", "timestamp", "date", "created", "created_at", "published", "warc_date", "crawl_date")
LANGUAGES = ("language", "lang", "language_code")

_CODE = re.compile(r"(?:__label__)?([a-z]{2,3})(?:[-_][A-Za-z]+)?")


def columns_to_read(names: Sequence[str], settings: ReadSettings) -> list[str]:
    """Those of a file's columns that a document is made of.

    Raises:
        Problem: no row of these columns can be a document.
    """
    if settings.rows == "whole":
        return list(names)
    nested = settings.rows != "text" and is_nested(names)
    if settings.text not in names and not nested:
        raise _no_text(settings, names, "columns")
    if settings.id and settings.id not in names:
        raise Problem(f'no "{settings.id}"', f"columns: {', '.join(names)}")
    if settings.metadata == "all":
        return list(names)
    known = {settings.text, settings.id, *URLS, *TIMES, *LANGUAGES, *(COLUMNS if nested else ())}
    wanted = known if settings.metadata == "none" else known.union(settings.metadata)
    return [name for name in names if name in wanted]


def document_of(row: Mapping[str, Any], source: SourceFile, label: str, settings: ReadSettings) -> Document:
    """The document that a row is.

    Args:
        row: its columns.
        source: the file.
        label: what an id has after the file's name.
        settings: which columns are what.

    Raises:
        Problem: it is none.
    """
    text, messages, used, left = _contents(row, settings)
    rest = {name: value for name, value in row.items() if name not in used} | left
    return Document(
        id=_id(row, source, label, settings),
        text=text,
        source=source.origin or str(source.path),
        messages=messages,
        url=_take(rest, URLS, lambda value: value if isinstance(value, str) and value else None),
        time=_take(rest, TIMES, time_of),
        language=_take(rest, LANGUAGES, _language),
        metadata=_metadata(rest, settings),
    )


def _contents(
    row: Mapping[str, Any], settings: ReadSettings
) -> tuple[str, tuple[Message, ...], set[str], dict[str, Any]]:
    """The text or the messages, the columns that they are from, and what else these say."""
    if settings.rows == "whole":
        return json.dumps(json_value(row), ensure_ascii=False), (), set(row), {}
    text = row.get(settings.text)
    if settings.rows == "messages" or (settings.rows == "auto" and (text is None or text == "")):
        turns, used, left = turns_of(row)
        if turns:
            return "", tuple(turn.message for turn in turns), used | ({settings.text} if text == "" else set()), left
    if settings.rows == "messages" or settings.text not in row:
        raise _no_text(settings, row, "keys")
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise Problem(f'"{settings.text}" is not a string', kind)
    return text, (), {settings.text}, {}


def _no_text(settings: ReadSettings, names: Any, what: str) -> Problem:
    wanted = "messages" if settings.rows == "messages" else f'"{settings.text}"'
    return Problem(f"no {wanted}", f"{what}: {', '.join(map(str, names))[:400] or 'none'}")


def _id(row: Mapping[str, Any], source: SourceFile, label: str, settings: ReadSettings) -> str:
    if not settings.id:
        return source.name + label
    value = row.get(settings.id)
    if not isinstance(value, str | int) or value == "":
        raise Problem(f'no "{settings.id}"', f"{value!r:.80}")
    return f"{source.origin}/{value}" if source.origin else str(value)


def _take(rest: dict[str, Any], names: Sequence[str], read: Any) -> Any:
    """The first of ``names`` that ``read`` makes something of, taken out of ``rest``."""
    for name in names:
        value = read(rest[name]) if name in rest else None
        if value is not None:
            del rest[name]
            return value
    return None


def time_of(value: Any) -> datetime | None:
    """A point in time, UTC where it names no zone; None if it is none: ISO 8601, or seconds or milliseconds of Unix."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool) and 1e8 <= value < 1e14:
            value = datetime.fromtimestamp(value / (1000 if value >= 1e11 else 1), UTC)
        elif type(value) is date:
            value = datetime(value.year, value.month, value.day)
        if not isinstance(value, datetime):
            return None
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _language(value: Any) -> str | None:
    """The code of ``en``, ``eng_Latn``, ``zh-CN`` or ``__label__de``."""
    match = _CODE.fullmatch(value) if isinstance(value, str) else None
    return match[1] if match else None


def _metadata(rest: Mapping[str, Any], settings: ReadSettings) -> dict[str, Any]:
    if settings.metadata == "none":
        return {}
    names = rest if settings.metadata == "all" else settings.metadata
    kept = {name: json_value(rest[name]) for name in names if rest.get(name) is not None}
    try:
        json.dumps(kept, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Problem("not UTF-8", f"a lone surrogate in another column ({error.object[error.start]!r})") from None
    return {name: value for name, value in kept.items() if value is not None}


def json_value(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON can hold it: times as ISO 8601, bytes and numbers that are not finite as null.

    Raises:
        Problem: it is nested too deeply.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == MAX_DEPTH:
        raise Problem("nested too deeply", f"more than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {str(key): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, depth + 1) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    return None if isinstance(value, bytes | bytearray) else str(value)
