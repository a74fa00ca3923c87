"""Prompts in one normal form, made of rows in the schemas in which sets are published."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.align.chats.chat import Message, chat_of, prompt_of
from leyden.align.chats.read import read_rows
from leyden.core.errors import UserError
from leyden.data.documents import Reject
from leyden.data.readers.problem import Problem

_REFERENCES = ("final_answer", "ground_truth", "answer", "solution")
"""Fields that hold the right answer in published sets, the most exact first."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt.

    Attributes:
        id: 16 hexadecimal digits, of its messages alone: the same prompt has the same one in every set.
        row: as it was read, with ``prompt`` (a text, or messages where there are several) and, where the row says in
            another way what a response is graded by, ``reference``, ``tests`` or ``instructions``.
        messages: each with a text; the last is not the assistant's.
        place: the name of the file, and the row in it.
    """

    id: str
    row: Mapping[str, Any]
    messages: tuple[Message, ...]
    place: str

    @property
    def text(self) -> str:
        """What is said, with empty lines between messages."""
        return "\n\n".join(message["content"] for message in self.messages)


def read_prompts(paths: Sequence[str], rejects: list[Reject]) -> list[PromptRow]:
    """The prompts of files, in their order.

    Args:
        paths: JSON lines, JSON lists, Parquet and Arrow files, also compressed, folders, patterns, ``hf://OWNER/NAME``.
        rejects: takes what is set aside, as it is met.

    Raises:
        UserError: a path does not exist, or there is no prompt in any of them.
    """
    prompts = list(_read(paths, rejects))
    if not prompts:
        reasons = ", ".join(sorted({reject.reason for reject in rejects})) or "the files are empty"
        raise UserError(
            f"{', '.join(paths)}: there is no prompt ({reasons}). A row has a prompt, a question, a problem, an "
            "instruction or messages."
        )
    return prompts


def _read(paths: Sequence[str], rejects: list[Reject]) -> Iterator[PromptRow]:
    return read_rows(paths, rejects, prompt_row, "prompts")


def prompt_row(row: Mapping[str, Any], id: str, source: str) -> PromptRow:
    """The prompt of a row; ``id`` is its place, and ``source`` its file.

    Raises:
        Problem: it has none, or one that is not text alone.
    """
    messages = _messages(row)
    if any(set(message) != {"role", "content"} or not isinstance(message["content"], str) for message in messages):
        raise Problem("not text alone", "calls of tools and their results cannot be asked with")
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    made = {**row, "prompt": messages[0]["content"] if alone else list(messages)}
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]
    return PromptRow(digest, {**made, **_graded_by(row)}, messages, id)


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if isinstance(row.get("problem"), str) and not row.get("prompt"):
        row = {**row, "prompt": row["problem"]}
    try:
        return prompt_of(row)
    except Problem:
        if not any(row.get(name) for name in ("messages", "conversations")):
            raise
    messages = chat_of(row, "", "").messages  # a chat with its answer: what comes before the last answer is asked
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise Problem("no prompt", "all messages are answers of the assistant")
    return messages


def _graded_by(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a response is graded by, in the fields that rewards read."""
    if any(row.get(name) is not None for name in ("reference", "tests", "instructions", "instruction_id_list")):
        return {}
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str):  # HumanEval
        return {"tests": row["test"]}
    if isinstance(row.get("test_list"), list):  # MBPP
        return {"tests": row["test_list"]}
    within = row.get("reward_model")
    inner = within.get("ground_truth") if isinstance(within, Mapping) else None
    given = [value for value in (inner, *(row.get(name) for name in _REFERENCES)) if isinstance(value, str | int)]
    return {"reference": str(given[0])} if given else {}
