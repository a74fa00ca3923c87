"""Chats and preference pairs in one normal form, made of rows in the schemas in which they are published.

A row is read by the same code as nested documents are (:mod:`leyden.data.readers.nested`): turns (``messages``,
``conversations``), or questions and answers under their usual names, with ``system`` and ``tools`` beside them. A pair
of answers stands in ``chosen`` and ``rejected``, with its question in ``prompt``, in turns, or repeated in both;
HH-RLHF writes both as one transcript, ``\\n\\nHuman: ...\\n\\nAssistant: ...``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leyden.data.readers.nested import turns_of
from leyden.data.readers.problem import Problem
from leyden.data.readers.turns import Turn, read_turn

Message = dict[str, Any]

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_ASKED = ("prompt", "question", "instruction", "query")
_TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Chat:
    """A chat that has answers to learn.

    Attributes:
        id: the name of its file, and its row.
        source: the file.
        messages: of OpenAI's form, as a chat template takes them: ``role`` (``system``, ``user``, ``assistant`` or
            ``tool``) and ``content``; an answer may have ``tool_calls``, then its ``content`` may be None; a result has
            a ``tool_call_id``.
        learned: for each message, whether it is an answer that is to be learned.
        tools: descriptions of the functions that may be called.
    """

    id: str
    source: str
    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which one is preferred.

    Attributes:
        id, source, tools: as of :class:`Chat`.
        prompt: messages, the last of which is not the assistant's.
        chosen, rejected: the messages that follow, which differ; each ends with an answer.
        prefix: what is written of the answer already. ``chosen`` and ``rejected`` are one message each, which goes on
            from there, perhaps by a single token, and is not its end. None: they are whole answers.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    prefix: str | None = None


def is_preference(row: Mapping[str, Any]) -> bool:
    """Whether a row is a pair of answers."""
    return row.get("chosen") is not None and row.get("rejected") is not None


def chat_of(row: Mapping[str, Any], id: str, source: str) -> Chat:
    """The chat of a row; of a pair of answers, the one with the chosen answer.

    Raises:
        Problem: it has none, or none that can be learned from.
    """
    if is_preference(row):
        if isinstance(row.get("prefix"), str):
            raise Problem("no chat", '"chosen" goes on from "prefix", and is no whole answer')
        turns, _ = _both(row)
    else:
        turns, _, _ = turns_of(row)
    if not turns:
        raise Problem("no chat", f"columns: {', '.join(map(str, row))}"[:400])
    messages, learned = _messages(turns)
    if not any(learned):
        raise Problem("no answer", "no message of the assistant is to be learned")
    return Chat(id, source, messages, learned, _tools_of(row))


def preference_of(row: Mapping[str, Any], id: str, source: str) -> Preference:
    """The pair of a row.

    Raises:
        Problem: it has none, or its answers are equal.
    """
    if not is_preference(row):
        raise Problem("no pair", "there are no columns chosen and rejected")
    if isinstance(row.get("prefix"), str):
        return _of_continuations(row, id, source)
    (chosen, _), (rejected, _) = map(_messages, _both(row))
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None:
        raise Problem("equal answers", "chosen and rejected are the same, or one goes on where the other ends")
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    both = chosen[shared:], rejected[shared:]
    if not shared or any(side[-1]["role"] != "assistant" or side[0]["role"] != "assistant" for side in both):
        raise Problem("no answer", "chosen and rejected do not part at an answer to one prompt")
    return Preference(id, source, chosen[:shared], *both, _tools_of(row))


def prompt_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages that a row asks with: ``prompt``, ``question`` or turns, none of which is an answer to be given.

    Raises:
        Problem: it has none, or they end with an answer.
    """
    turns = _prompt(row)
    if not turns:
        raise Problem("no prompt", f"columns: {', '.join(map(str, row))}"[:400])
    messages, _ = _messages(turns)
    if messages[-1]["role"] == "assistant":
        raise Problem("no prompt", "the last message is an answer of the assistant")
    return messages


def _of_continuations(row: Mapping[str, Any], id: str, source: str) -> Preference:
    """The pair of a row that says how an answer begins, and two ways to go on."""
    chosen, rejected = row["chosen"], row["rejected"]
    if not (isinstance(chosen, str) and isinstance(rejected, str) and chosen and rejected):
        raise Problem("bad messages", '"chosen" and "rejected" go on from "prefix", and are no texts')
    if chosen == rejected:
        raise Problem("equal answers", "chosen and rejected are the same")
    prompt, _ = _messages(_prompt(row))
    if not prompt or prompt[-1]["role"] == "assistant":
        raise Problem("no answer", '"prefix" begins no answer to a prompt')
    better, worse = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return Preference(id, source, prompt, (better,), (worse,), _tools_of(row), row["prefix"])


def _both(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """The whole chats with the chosen and with the rejected answer."""
    asked = _prompt(row)
    sides = [_side(row[name], name) for name in ("chosen", "rejected")]
    if asked and all(side[: len(asked)] == asked for side in sides):  # the prompt is repeated in both
        asked = ()
    chosen, rejected = ((*asked, *side) for side in sides)
    return chosen, rejected


def _prompt(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    name = next((name for name in _ASKED if row.get(name)), None)
    if name is None:
        return turns_of(row)[0]
    asked = row[name]
    if isinstance(asked, str) and not _SPEAKER.match(asked) and isinstance(row.get("input"), str) and row["input"]:
        asked = f"{asked}\n\n{row['input']}"
    turns = _side(asked, name, alone="user")
    system = row.get("system")
    if isinstance(system, str) and system and turns[0].role != "system":
        return (Turn("system", system, "", (), True, {}), *turns)
    return turns


def _side(value: Any, name: str, alone: str = "assistant") -> tuple[Turn, ...]:
    """Turns: of a list, of one turn, of a transcript, or of what one speaker, ``alone``, says."""
    if isinstance(value, str):
        said = _SPEAKER.split(value)
        if len(said) > 1 and not said[0].strip():
            roles = {"Human": "user", "Assistant": "assistant"}
            pairs = [(roles[who], what.strip()) for who, what in zip(said[1::2], said[2::2], strict=True)]
            return tuple(Turn(role, what, "", (), True, {}) for role, what in pairs)
        return (Turn(alone, value, "", (), True, {}),)
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple) or not turns:
        raise Problem("bad messages", f'"{name}" is neither a text nor turns but {type(value).__name__}')
    return tuple(read_turn(turn, f"{name}[{number}]") for number, turn in enumerate(turns))


def _messages(turns: Sequence[Turn]) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
    """Turns in OpenAI's form, and which are answers to learn.

    What a question is about becomes part of it. Calls without an id get one, and results without one are those of the
    calls before them, in order.
    """
    messages: list[Message] = []
    learned: list[bool] = []
    open_calls: list[str] = []
    document = ""
    num_calls = 0
    for number, turn in enumerate(turns):
        if turn.role == "document":
            document = turn.said
            continue
        if document and turn.role == "user":
            turn, document = replace(turn, said=f"{document}\n\n{turn.said}"), ""
        if not turn.spoken.strip() and not turn.calls and turn.role != "tool":
            raise Problem("empty message", f"message {number} ({turn.role}) says nothing")
        message: Message = {"role": turn.role, "content": turn.spoken}
        if turn.role == "assistant" and turn.calls:
            message |= {"content": turn.spoken or None, "tool_calls": _calls(turn, num_calls)}
            num_calls += len(turn.calls)
            open_calls = [call["id"] for call in message["tool_calls"]]
        if turn.role == "tool":
            message |= _result_of(turn, open_calls, number)
        messages.append(message)
        learned.append(turn.role == "assistant" and turn.learned)
    return tuple(messages), tuple(learned)


def _calls(turn: Turn, num_before: int) -> list[Message]:
    lefts = turn.rest.get("tool_calls") or [{}] * len(turn.calls)
    return [
        {
            "id": str(left.get("id") or f"call{num_before + number:05d}"),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, (call, left) in enumerate(zip(turn.calls, lefts, strict=True))
    ]


def _result_of(turn: Turn, open_calls: list[str], number: int) -> Message:
    """Which call a result is of; the call is then no longer open."""
    named = {name: turn.rest[name] for name in ("tool_call_id", "name") if isinstance(turn.rest.get(name), str)}
    if "tool_call_id" not in named and not open_calls:
        raise Problem("bad messages", f"message {number} (tool) is the result of no call")
    of_call = named.get("tool_call_id") or open_calls[0]
    if of_call in open_calls:
        open_calls.remove(of_call)
    return {**named, "tool_call_id": of_call}


def _tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The functions that a row says may be called, each in OpenAI's wrapper."""
    name = next((name for name in _TOOLS if row.get(name)), None)
    if name is None:
        return ()
    tools = row[name]
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise Problem("bad tools", f'"{name}" is not JSON: {tools!r:.80}') from None
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Problem("bad tools", f'"{name}" is not a list of objects')
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
