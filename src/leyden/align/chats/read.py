"""Files of chats and of preference pairs, read row by row by the readers of ``data``; nothing is lost in silence."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from leyden.align.chats.chat import Chat, Preference, chat_of, preference_of
from leyden.align.tasks import PREFIX, task_rows
from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.readers import Piece, SourceSettings, read_piece, source_files
from leyden.data.readers.problem import Problem

_WITH_ROWS = ("jsonl", "parquet", "arrow")

_OF_TASKS = {
    "chats": ("prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt", "task", "reference"),
    "items": ("prompt", "reference"),
}
"""What a row of a task has, of those that a task names (:mod:`leyden.align.tasks`)."""

Made = TypeVar("Made")


def read_chats(paths: Sequence[str], rejects: list[Reject]) -> Iterator[Chat]:
    """The chats of files.

    Args:
        paths: JSON lines, JSON lists, Parquet and Arrow files, folders of them, patterns, ``hf://OWNER/NAME``, or tasks
            as ``tasks:short``.
        rejects: takes what is set aside, as it is met: files, and rows with the reason.

    Raises:
        UserError: a path does not exist, or none of them holds files with rows.
    """
    return read_rows(paths, rejects, chat_of, "chats")


def read_preferences(paths: Sequence[str], rejects: list[Reject]) -> Iterator[Preference]:
    """The preference pairs of files; arguments and errors as of :func:`read_chats`."""
    return read_rows(paths, rejects, preference_of, "preferences")


def read_rows(
    paths: Sequence[str], rejects: list[Reject], make: Callable[[Mapping[str, Any], str, str], Made], what: str
) -> Iterator[Made]:
    """What ``make`` makes of the rows of files.

    Args:
        paths, rejects: as of :func:`read_chats`.
        make: takes a row, its id and its file; a :class:`~leyden.data.readers.problem.Problem` sets the row aside.
        what: what the rows are, in the plural, for errors.

    Raises:
        UserError: a path does not exist, or none of them holds files with rows.
    """
    if what not in _OF_TASKS and any(path.startswith(PREFIX) for path in paths):
        raise UserError(f"tasks ({PREFIX}...) have no {what}; name files of them.")
    for path in (path for path in paths if path.startswith(PREFIX)):
        for number, row in enumerate(task_rows(path.removeprefix(PREFIX))):
            yield make({key: row[key] for key in _OF_TASKS[what]}, f"{path}:{number}", path)
    paths = [path for path in paths if not path.startswith(PREFIX)]
    if not paths:
        return
    settings = SourceSettings(name=what, paths=tuple(paths), rows="whole", metadata="none")
    files = source_files(settings, rejects)
    with_rows = [file for file in files if file.format in _WITH_ROWS]
    rejects += [Reject(str(file.path), "", "no rows", file.format) for file in files if file not in with_rows]
    if not with_rows:
        raise UserError(
            f"{', '.join(paths)}: there is no file of {what}; {what} are rows of .jsonl, .json, .parquet or .arrow "
            "files (a .json file must be named itself, and not only its folder)."
        )
    for file in with_rows:
        for document in read_piece(Piece(file, file.format, 0), settings, rejects):
            try:
                yield make(json.loads(document.text), document.id, str(file.path))
            except Problem as problem:
                row = document.id.removeprefix(file.name).lstrip(":@")
                rejects.append(Reject(str(file.path), f"row {row}", problem.reason, problem.detail))
