"""Rows to nested documents: the shapes in which dialogues and sets of questions and answers are published."""

from collections.abc import Mapping, Sequence
from typing import Any

from leyden.data.documents import Message
from leyden.data.readers.problem import Problem

TURNS = ("messages", "conversations", "conversation")
"""Columns with a list of turns: ``role`` and ``content``, or (ShareGPT) ``from`` and ``value``."""

PAIRS = (
    ("questions", "answers"),
    ("question", "answer"),
    ("question", "answers"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
)
"""Columns of what is asked and what is answered: one of each, or lists of equal length."""

CONTEXTS = ("context", "document", "passage")
"""Columns that hold what questions are asked about; it becomes the first message, of role ``document``."""

COLUMNS = frozenset({*TURNS, *CONTEXTS, "input", "system"}.union(*PAIRS))
"""Every column that :func:`messages_of` may use."""

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "tool_response", "function_response"), "tool"),
    "document": "document",
}


def is_nested(names: Sequence[str]) -> bool:
    """Whether rows with these columns hold messages."""
    return any(name in names for name in TURNS) or any(set(pair) <= set(names) for pair in PAIRS)


def messages_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], set[str]]:
    """The messages of a row, empty where it has none, and the columns that they are from.

    Raises:
        Problem: there are some, and they are not of the shape that their columns' names say.
    """
    for name in TURNS:
        if row.get(name):
            return _with_system(row, _turns(row[name], name), {name})
    for asked, answered in PAIRS:
        if row.get(asked) and row.get(answered):
            return _with_system(row, *_pairs(row, asked, answered))
    return (), set()


def _with_system(
    row: Mapping[str, Any], messages: tuple[Message, ...], used: set[str]
) -> tuple[tuple[Message, ...], set[str]]:
    system = row.get("system")
    if not isinstance(system, str) or not system or messages[0].role == "system":
        return messages, used
    return (Message("system", system), *messages), used | {"system"}


def _turns(turns: Any, column: str) -> tuple[Message, ...]:
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise Problem("bad messages", f'"{column}" is not a list but {type(turns).__name__}')
    return tuple(_turn(turn, f"{column}[{number}]") for number, turn in enumerate(turns))


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Problem("bad messages", f"{place} is not an object but {type(turn).__name__}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "\n\n".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise Problem("bad messages", f"the content of {place} is not a string but {type(content).__name__}")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise Problem("bad messages", f"the role of {place} is {role!r:.80}; known: {', '.join(_ROLES)}")
    return Message(_ROLES[role.lower()], content)


def _part(part: Any, place: str) -> str:
    """One part of a content that is a list, which must be text."""
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise Problem("bad messages", f"a part of {place} is not text")


def _pairs(row: Mapping[str, Any], asked: str, answered: str) -> tuple[tuple[Message, ...], set[str]]:
    used = {asked, answered}
    questions, answers = row[asked], row[answered]
    if isinstance(questions, str):
        questions = [questions]
        answers = [_one_answer(answers)]
        if isinstance(row.get("input"), str) and asked == "instruction":
            used.add("input")
            questions = ["\n\n".join(filter(None, (row[asked], row["input"])))]
    both = (questions, answers)
    if not all(isinstance(texts, Sequence) and all(isinstance(t, str) for t in texts) for texts in both):
        raise Problem("bad messages", f'"{asked}" and "{answered}" are neither strings nor lists of strings')
    if len(questions) != len(answers):
        raise Problem("bad messages", f'{len(questions)} in "{asked}" and {len(answers)} in "{answered}"')
    messages = [
        Message(r, t)
        for pair in zip(questions, answers, strict=True)
        for r, t in zip(("user", "assistant"), pair, strict=True)
    ]
    for context in CONTEXTS:
        if isinstance(row.get(context), str) and row[context]:
            return (Message("document", row[context]), *messages), used | {context}
    return tuple(messages), used


def _one_answer(answers: Any) -> Any:
    """Where several answers are given to one question, they say the same, and the first stands for all."""
    if isinstance(answers, Mapping):  # SQuAD
        answers = answers.get("text")
    if isinstance(answers, Sequence) and not isinstance(answers, str) and len(answers):
        return answers[0]
    return answers
