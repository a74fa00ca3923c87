"""What is wrong with a request, in few sentences: where it is, what was given, what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from leyden.serve.http.errors import ApiError

_SHOWN_PROBLEMS = 8
_SHOWN_CHARACTERS = 200
_UNSUPPORTED = ("extra_forbidden", "none_required")

Path = tuple[str | int, ...]
"""Keys and places of lists, from the body to the field."""


def explain(problems: Sequence[ErrorDetails], body: Any) -> ApiError:
    """One sentence for each of the first fields that pydantic found wrong, and how many more there are.

    Args:
        problems: all of them.
        body: the JSON value that they were found in.
    """
    grouped: dict[Path, list[ErrorDetails]] = {}
    for problem in problems:
        grouped.setdefault(path_of(problem, body), []).append(problem)
    told = _telling(grouped)
    sentences = [_sentence(path, grouped[path]) for path in told[:_SHOWN_PROBLEMS]]
    if len(told) > _SHOWN_PROBLEMS:
        sentences.append(f"And {len(told) - _SHOWN_PROBLEMS} more.")
    unsupported = grouped[told[0]][0]["type"] in _UNSUPPORTED
    code = "unsupported_parameter" if unsupported else "invalid_value"
    return ApiError(400, " ".join(sentences), param=_shown(told[0]) or None, code=code)


def ignorable(problems: Sequence[ErrorDetails], body: Any) -> list[Path]:
    """The fields among ``problems`` that are unknown or not supported, and can be taken out of ``body``."""
    return [path_of(problem, body) for problem in problems if problem["type"] in _UNSUPPORTED]


def path_of(problem: ErrorDetails, body: Any) -> Path:
    """Where in ``body`` the problem is. What pydantic says besides is which kinds of value it tried there."""
    path: list[str | int] = []
    value: Any = body
    for step in problem["loc"]:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            value = value[step]  # pyright: ignore[reportCallIssue, reportArgumentType] - a place of a list, a key else
            path.append(step)
    if problem["type"] == "missing":
        path.append(problem["loc"][-1])
    return tuple(path)


def _telling(grouped: Mapping[Path, Sequence[ErrorDetails]]) -> list[Path]:
    """Of the fields those that say most: not a whole where a part of it is named, nor what follows from a wrong type.

    Of a value that may be several things, pydantic tells what keeps it from being each of them.
    """
    wholes = {path[:depth] for path in grouped for depth in range(len(path))}
    mistyped = {
        path[:-1] for path, found in grouped.items() if path and path[-1] in ("type", "role") and _is_kind(found)
    }
    return [path for path in grouped if path not in wholes and (path[:-1] not in mistyped or _is_kind(grouped[path]))]


def _is_kind(problems: Sequence[ErrorDetails]) -> bool:
    return problems[0]["type"] in ("literal_error", "union_tag_invalid")


def _sentence(path: Path, problems: Sequence[ErrorDetails]) -> str:
    field, kind = _shown(path), problems[0]["type"]
    if kind == "extra_forbidden":
        return f"'{field}' is not a field of this request; leave it out."
    if kind == "none_required":
        return f"'{field}' is not supported by this server with this value; leave it out."
    if kind == "missing":
        return f"'{field}' is required."
    rules = dict.fromkeys(problem["msg"].removeprefix("Value error, ").rstrip(".") for problem in problems)
    given = _given(problems[0].get("input"))
    subject = f"'{field}'" if field else "The body"
    return f"{subject}: {', or '.join(rules)[: 2 * _SHOWN_CHARACTERS]}{f' (given: {given})' if given else ''}."


def _given(value: Any) -> str:
    """How a value that is no list or table was given; nothing, where that would be long."""
    if isinstance(value, dict | list) or (isinstance(value, str) and len(value) > _SHOWN_CHARACTERS):
        return ""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else ""


def _shown(path: Path) -> str:
    text = ".".join(str(step)[:_SHOWN_CHARACTERS] for step in path)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
