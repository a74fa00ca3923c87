"""The published rows of MR-NIAH: {"messages", "label", "length_class"}, checked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.log import say
from leyden.evaluate.published import PublishedRow, find_files, parse_rows, read_published
from leyden.evaluate.tasks.mr_niah.generated import Messages

_PUBLISHED_ROWS = 30
"""Rows that a whole file of the publishers has."""


@dataclass(frozen=True)
class Dialogue:
    """A row.

    Attributes:
        id: the file's name and the row's line.
        where: file and line, for messages to the user.
        messages: the turns; the last one asks for the answer again.
        label: that answer.
        length_class: the publishers' nominal number of tokens.
        depth: where the answer stands among the turns, in percent.
    """

    id: str
    where: str
    messages: Messages
    label: str
    length_class: int
    depth: int


class PublishedDialogues:
    """All rows of a file, or of the files of a folder.

    Attributes:
        rows: the whole ones.
        missing: how many rows the files that are cut short lack.
        digest: of all files, for the settings.

    Raises:
        UserError: rows that are broken, or files without a whole row.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[Dialogue] = []
        self.missing = 0
        content = hashlib.blake2b(digest_size=8)
        for file in find_files(path):
            rows, cut_short = read_published(file)
            self.rows += parse_rows(rows, lambda row, stem=file.stem: _dialogue(row, stem))
            content.update(file.read_bytes())
            if cut_short:
                missing = max(1, _PUBLISHED_ROWS - len(rows))
                self.missing += missing
                say(
                    f"{file} is cut short within a row: {len(rows)} rows of it are whole and used, and {missing} of "
                    f"the {_PUBLISHED_ROWS} of a published file are missing."
                )
        self.digest = content.hexdigest()
        if not self.rows:
            raise UserError(f"--file: {path} has no whole row; without --file, dialogues of any length are generated.")

    def of_lengths(self, lengths: Sequence[int] | None) -> list[Dialogue]:
        """The rows of some classes of length; all of them for None.

        Raises:
            UserError: there are none of a class.
        """
        known = {row.length_class for row in self.rows}
        for length in lengths or ():
            if length not in known:
                classes = ", ".join(map(str, sorted(known)))
                raise UserError(f"mr_niah: --file has no rows of length class {length}; it has {classes}.")
        return [row for row in self.rows if lengths is None or row.length_class in lengths]


def _dialogue(row: PublishedRow, stem: str) -> Dialogue:
    label, messages = row.text("label"), row.fields.get("messages")
    if not isinstance(messages, list) or len(messages) % 2 == 0:
        raise row.broken("messages", "a list of an odd number of turns")
    for index, message in enumerate(messages):
        _check_turn(row, index, message)
    answers = [message["content"] for message in messages]
    if label not in answers[1::2]:
        raise row.broken("label", "an answer of the assistant in 'messages'")
    depth = round(100 * answers.index(label) / len(messages))
    line = row.where.rsplit(" ", 1)[1]
    return Dialogue(f"{stem}-{line}", row.where, messages, label, row.count("length_class"), depth)


def _check_turn(row: PublishedRow, index: int, message: Any) -> None:
    role = ("user", "assistant")[index % 2]
    if not isinstance(message, dict):
        raise row.broken(f"messages[{index}]", "an object with 'role' and 'content'", message)
    if message.get("role") != role:
        raise row.broken(f"messages[{index}].role", f"'{role}'", message.get("role"))
    if not isinstance(message.get("content"), str):
        raise row.broken(f"messages[{index}].content", "a text", message.get("content"))
