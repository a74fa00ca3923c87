"""Rows to nested documents: the shapes in which dialogues and sets of questions and answers are published."""

from collections.abc import Mapping, Sequence
from typing import Any

from leyden.data.readers.problem import Problem
from leyden.data.readers.turns import Turn, read_turn

TURNS = ("messages", "conversations", "conversation")
"""Columns with a list of turns: see :func:`~leyden.data.readers.turns.read_turn`."""

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

COLUMNS = frozenset({*TURNS, *CONTEXTS, "input", "history", "system"}.union(*PAIRS))
"""Every column that :func:`turns_of` may use."""

Nested = tuple[tuple[Turn, ...], set[str], dict[str, Any]]
"""Turns, the columns that they are from, and what else those columns say: it stays with the row's other columns."""


def is_nested(names: Sequence[str]) -> bool:
    """Whether rows with these columns hold messages."""
    return any(name in names for name in TURNS) or any(set(pair) <= set(names) for pair in PAIRS)


def turns_of(row: Mapping[str, Any]) -> Nested:
    """The turns of a row, empty where it has none.

    Raises:
        Problem: there are some, and they are not of the shape that their columns' names say.
    """
    for name in TURNS:
        if row.get(name):
            return _with_system(row, _turns(row[name], name))
    for asked, answered in PAIRS:
        if row.get(asked) and row.get(answered):
            return _with_system(row, _pairs(row, asked, answered))
    return (), set(), {}


def _with_system(row: Mapping[str, Any], nested: Nested) -> Nested:
    turns, used, left = nested
    system = row.get("system")
    if not isinstance(system, str) or not system or turns[0].role == "system":
        return nested
    return (_turn("system", system), *turns), used | {"system"}, left


def _turns(turns: Any, column: str) -> Nested:
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise Problem("bad messages", f'"{column}" is not a list but {type(turns).__name__}')
    read = [read_turn(turn, f"{column}[{number}]") for number, turn in enumerate(turns)]
    rests = [turn.rest for turn in read]
    return tuple(read), {column}, {column: rests} if any(rests) else {}


def _pairs(row: Mapping[str, Any], asked: str, answered: str) -> Nested:
    used, left = {asked, answered}, {}
    questions, answers = row[asked], row[answered]
    if _are_turns(questions) and _are_turns(answers):
        (said, _, rests), (then, _, more) = _turns(questions, asked), _turns(answers, answered)
        return said + then, used, rests | more
    if isinstance(questions, str):
        questions = [questions]
        answers, others = _one_answer(answers)
        left = {answered: row[answered]} if others else {}
        if isinstance(row.get("input"), str) and asked == "instruction":
            used.add("input")
            questions = ["\n\n".join(filter(None, (row[asked], row["input"])))]
        if asked == "instruction" and _are_rounds(row.get("history")):
            used.add("history")
            questions = [*(one for one, _ in row["history"]), *questions]
            answers = [*(one for _, one in row["history"]), *answers]
    both = (questions, answers)
    if not all(isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts) for texts in both):
        raise Problem("bad messages", f'"{asked}" and "{answered}" are neither strings nor lists of strings')
    if len(questions) != len(answers):
        raise Problem("bad messages", f'{len(questions)} in "{asked}" and {len(answers)} in "{answered}"')
    turns = [
        _turn(r, t)
        for pair in zip(questions, answers, strict=True)
        for r, t in zip(("user", "assistant"), pair, strict=True)
    ]
    for context in CONTEXTS:
        if isinstance(row.get(context), str) and row[context]:
            return (_turn("document", row[context]), *turns), used | {context}, left
    return tuple(turns), used, left


def _turn(role: str, said: str) -> Turn:
    return Turn(role, said, "", (), True, {})


def _are_turns(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(turn, Mapping) for turn in value)


def _are_rounds(value: Any) -> bool:
    """Whether these are earlier questions with their answers."""
    return isinstance(value, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 2 for one in value)


def _one_answer(answers: Any) -> tuple[list[Any], bool]:
    """Of several answers to one question the first, which stands for all; and whether there is more to be kept."""
    more = isinstance(answers, Mapping) and not set(answers) <= {"text", "answer_start"}
    if isinstance(answers, Mapping):  # SQuAD
        answers = answers.get("text")
    several = answers if isinstance(answers, list | tuple) and answers else [answers]
    return [several[0]], more or any(answer != several[0] for answer in several)
