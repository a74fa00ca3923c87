"""One turn of a dialogue: what is said, thought and called, in the schemas that are in use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leyden.data.documents import Message
from leyden.data.readers.problem import Problem

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bard", "bing"), "assistant"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "tool_response", "function_response"), "tool"),
    "document": "document",
}
_CALLING = ("function_call", "tool_call", "tool_calls")
"""Roles (ShareGPT) whose content is a call, as JSON."""
_CONTENTS = ("content", "value", "text")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of the parts of a content that are text, and where it stands."""
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_LEARNED = ("weight", "train", "loss")
"""Fields by which a turn says whether an answer is to be learned: 0, 1, true or false."""


@dataclass(frozen=True)
class Call:
    """A call of a tool: its name, and its arguments as text, JSON as a rule."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue.

    Attributes:
        role: ``system``, ``user``, ``assistant``, ``tool`` or ``document``.
        said: what is said.
        thoughts: what is thought before; empty where nothing is.
        calls: of tools, after that.
        learned: whether an answer is to be learned.
        rest: whatever else the turn says: names, ids, times.
    """

    role: str
    said: str
    thoughts: str
    calls: tuple[Call, ...]
    learned: bool
    rest: Mapping[str, Any]

    @property
    def message(self) -> Message:
        """The turn as text.

        What it thinks stands before what it says, between ``<think>`` and ``</think>``. Calls of tools stand behind
        it, as the released chat format writes them, but for its special token. So no turn is kept without its words.
        """
        calls = (f"```typescript\nfunctions.{call.name}({call.arguments})\n```" for call in self.calls)
        return Message(self.role, "\n\n".join(words for words in (self.spoken, *calls) if words), self.learned)

    @property
    def spoken(self) -> str:
        """What is thought and said."""
        thoughts = f"<think>\n{self.thoughts}\n</think>" if self.thoughts else ""
        return "\n\n".join(words for words in (thoughts, self.said) if words)


def read_turn(turn: Any, place: str) -> Turn:
    """A turn of a row.

    Args:
        turn: an object with ``role`` and ``content``, or (ShareGPT) ``from`` and ``value``.
        place: of the turn in its row, for messages.

    Raises:
        Problem: it is none, has an unknown role, or says something that is no text: a picture, say.
    """
    if not isinstance(turn, Mapping):
        raise Problem("bad messages", f"{place} is not an object but {type(turn).__name__}")
    rest = {str(name): value for name, value in turn.items() if value is not None}
    role = _take(rest, ("role", "from"))
    content = _take(rest, _CONTENTS)
    calls = [*_calls(rest.pop("tool_calls", None), place), *_calls(rest.pop("function_call", None), place)]
    if role in _CALLING:
        role, content, calls = "assistant", "", [*_calls(content, place), *calls]
    text, parts = _text(content, place)
    called = [_call(call, place) for call in calls]
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise Problem("bad messages", f"the role of {place} is {role!r:.80}; known: {', '.join((*_ROLES, *_CALLING))}")
    thoughts = _take(rest, [name for name in _THOUGHTS if isinstance(rest.get(name), str)]) or ""
    refusal = rest.pop("refusal", "") if isinstance(rest.get("refusal"), str) else ""
    said = "\n\n".join(words for words in (text, refusal) if words)
    learned = _learned(rest, place)
    says_nothing = not said and not thoughts and not called
    if says_nothing and (content is None or any(isinstance(value, Mapping | list | tuple) for value in rest.values())):
        raise Problem("bad messages", f"{place} says nothing; its fields: {', '.join(turn) or 'none'}"[:400])
    beside = {"content": parts, "tool_calls": [left for _, left in called]}
    rest |= {name: left for name, left in beside.items() if any(left)}
    return Turn(_ROLES[role.lower()], said, thoughts, tuple(call for call, _ in called), learned, rest)


def _take(rest: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of ``names`` that there is, taken out of ``rest``."""
    return next((rest.pop(name) for name in names if name in rest), None)


def _text(content: Any, place: str) -> tuple[str, list[dict[str, Any]]]:
    """A content as text; and of one that is a list, what each part says beside its text."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list | tuple):
        raise Problem("bad messages", f"the content of {place} is not a string but {type(content).__name__}")
    parts = [_part(part, place) for part in content]
    return "\n\n".join(text for text, _ in parts), [left for _, left in parts]


def _part(part: Any, place: str) -> tuple[str, dict[str, Any]]:
    """One part of a content that is a list, which must be text."""
    if isinstance(part, str):
        return part, {}
    left = {name: value for name, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = left.pop("type", None) if isinstance(part, Mapping) else type(part).__name__
    text = left.pop(_TEXT_PARTS[kind], None) if isinstance(kind, str) and kind in _TEXT_PARTS else None
    if not isinstance(text, str):
        raise Problem("bad messages", f"a part of {place} is not text but {kind!r:.80}")
    return text, left


def _calls(calls: Any, place: str) -> list[Mapping[str, Any]]:
    """Calls of tools: one, or a list of some; also as a string of JSON."""
    if isinstance(calls, str) and calls:
        try:
            calls = json.loads(calls)
        except (ValueError, RecursionError):
            raise Problem("bad messages", f"a call of {place} is not JSON: {calls!r:.80}") from None
    calls = [calls] if isinstance(calls, Mapping) else calls or []
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise Problem("bad messages", f"the calls of {place} are not a list of objects")
    return list(calls)


def _call(call: Mapping[str, Any], place: str) -> tuple[Call, dict[str, Any]]:
    """A call, and what else it says. ``arguments`` that are a string stay as they are; others become JSON."""
    left = {name: value for name, value in call.items() if value is not None}
    wrapped = next((left.pop(name) for name in ("function", "custom") if isinstance(left.get(name), Mapping)), {})
    left |= {name: value for name, value in wrapped.items() if value is not None}
    name, arguments = left.pop("name", None), _take(left, _ARGUMENTS)
    if not isinstance(name, str) or not name:
        raise Problem("bad messages", f"a call of {place} has no name")
    if not isinstance(arguments, str):
        try:
            arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise Problem("bad messages", f"the arguments of a call of {place} are not JSON: {error}") from None
    return Call(name, arguments), left


def _learned(rest: dict[str, Any], place: str) -> bool:
    """Whether an answer is to be learned, where the turn says so."""
    for name in _LEARNED:
        value = rest.get(name)
        if isinstance(value, bool) or (name == "weight" and value in (0, 1)):
            return bool(rest.pop(name))
        if name == "weight" and value is not None:
            raise Problem("bad messages", f"the weight of {place} is {value!r:.80}; allowed: 0 and 1")
    return True
