"""The form of messages that a chat template takes (texts or parts), and the conversion to it.

Templates do not say whether they want a message's content as a string or as a list of parts, or a call's arguments as
the JSON that the model wrote or as a mapping, and Jinja says nothing when a template reads ``.text`` of a string: the
words are gone. So each template is tried once: short conversations of known words are rendered in every form, and a
form is right where the words come out.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

Message = dict[str, Any]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]] | None], str | None]
"""Messages and tools to the text of a chat, in lower case; None where the template refuses them."""

Content = Literal["string", "parts", "part"]
"""A string; a list of parts, however many; a list of one part."""

Style = Literal["text", "mapping"]
"""A call's arguments: the JSON text that the model wrote, or what it says."""

_SYSTEM, _USER, _ASSISTANT, _TOOL, _MORE = "qzvsystem", "qzvuser", "qzvassistant", "qzvtool", "qzvmore"
_NAME, _KEY, _VALUE, _OTHER = "qzvname", "qzvkey", "qzvvalue", "qzvother"
_CALL_ID = "call_qzv0123456789abcdef"
_STYLES: tuple[Style, ...] = ("text", "mapping")
_MAX_DEPTH = 64


@dataclass(frozen=True)
class _Calls:
    """How an answer's calls come out.

    Attributes:
        arguments: what a call's arguments are: the JSON text that the model wrote, or what it says.
        empty: the content of an answer that has calls and no text.
        beside_text: whether calls come out of an answer that has text, too; else the text is left out.
        short_ids: ids are nine letters and digits (Mistral's templates refuse all others).
        several: whether all calls of one answer come out, or the template says itself that it takes but one.
    """

    arguments: Style
    empty: Literal[""] | None
    beside_text: bool
    short_ids: bool
    several: bool


@dataclass(frozen=True)
class TemplateForm:
    """The form of messages that a template takes.

    Attributes:
        contents: by role, the forms of content whose words come out; none where the template leaves the role out
            without a word. A role that the template refuses is missing: it says so itself.
        calls: how calls come out; None where they do not.
        calls_as_text: where they do not come out, how the model writes them, if the template tells that.
        tools: whether functions are told in OpenAI's wrapper or bare; None where they do not come out.
    """

    contents: Mapping[str, tuple[Content, ...]]
    calls: _Calls | None
    calls_as_text: Literal["list", "tags"] | None
    tools: Literal["wrapped", "bare"] | None

    @classmethod
    def of(cls, source: str, render: Render) -> "TemplateForm":
        """Try the template ``source``, which ``render`` renders."""
        contents: dict[str, tuple[Content, ...]] = {}
        user = _found(contents, "user", lambda message: render([message], None))
        plain = _give(_USER, user)
        _found(contents, "system", lambda message: render([message, {"role": "user", "content": plain}], None))
        _found(contents, "developer", lambda message: render([message, {"role": "user", "content": plain}], None))
        asked = {"role": "user", "content": plain}
        _found(contents, "assistant", lambda message: render([asked, message, asked], None))
        calls, tool = _try_calls(render, contents)
        if tool is not None:
            contents["tool"] = tool
        as_text = "list" if "<tool_calls>" in source else "tags" if "<tool_call>" in source else None
        return cls(contents, calls, as_text, _try_tools(source, render, asked))

    def give(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        """``messages``, of OpenAI's form, in the template's."""
        names: dict[str, Any] = {}
        given: list[Message] = []
        for message in messages:
            made = dict(message)
            calls = message.get("tool_calls")
            content = message.get("content")
            if isinstance(calls, list) and all(map(_is_call, calls)) and calls:
                names |= {str(call.get("id")): call["function"].get("name") for call in calls}
                content = self._give_calls(made, content, [dict(call) for call in calls])
            if "tool_call_id" in made:
                name = names.get(str(made["tool_call_id"]))
                if made.get("name") is None and name is not None:
                    made["name"] = name
                made["tool_call_id"] = self._id(made["tool_call_id"])
            made["content"] = content if content is None and made.get("tool_calls") else self._content(made, content)
            given.append(made)
        return given

    def give_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
        """``tools``, each in OpenAI's wrapper or bare, in the template's form."""
        if self.tools != "bare" or not tools:
            return None if tools is None else list(tools)
        return [tool["function"] if _is_call(tool) else tool for tool in tools]

    def _content(self, message: Mapping[str, Any], content: Any) -> Any:
        role = "tool" if message["role"] == "function" else message["role"]
        return _give("" if content is None else content, self.contents.get(role, ()))

    def _give_calls(self, message: Message, content: Any, calls: list[Message]) -> Any:
        """Put ``calls`` into ``message`` in the template's form; the content that goes with them."""
        if self.calls is None:
            if self.calls_as_text is None:
                return content
            del message["tool_calls"]
            text, written = text_of(content), _written(calls, self.calls_as_text)
            return f"{text}\n{written}" if text else written
        for call in calls:
            function = dict(call["function"])
            arguments = function.get("arguments")
            function["arguments"] = _as_text(arguments) if self.calls.arguments == "text" else _as_mapping(arguments)
            call["function"] = function
            if "id" in call:
                call["id"] = self._id(call["id"])
        message["tool_calls"] = calls
        return content if text_of(content) and self.calls.beside_text else self.calls.empty

    def _id(self, given: Any) -> Any:
        if self.calls is None or not self.calls.short_ids or not isinstance(given, str):
            return given
        return given if re.fullmatch("[a-zA-Z0-9]{9}", given) else hashlib.sha256(given.encode()).hexdigest()[:9]


def text_of(content: Any) -> str:
    """The text of a message's content: of a list, all of its parts' texts."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _is_call(call: Any) -> bool:
    """Whether it wraps a function, as calls and tools do."""
    return isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)


def _give(content: Any, forms: Sequence[Content]) -> Any:
    """``content`` in one of ``forms``, if possible in the one that it has."""
    if isinstance(content, str):
        return content if "string" in forms or not forms else [{"type": "text", "text": content}]
    if "parts" in forms or not forms or any(part.get("type") != "text" for part in content):
        return content
    return text_of(content) if "string" in forms else [{"type": "text", "text": text_of(content)}]


def _as_text(arguments: Any) -> str:
    """A call's arguments as JSON text, which they are as the model wrote them; nothing is an empty object."""
    if isinstance(arguments, str):
        return arguments if arguments.strip() not in ("", "null") else "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _as_mapping(arguments: Any) -> Any:
    """A call's arguments as a mapping. An earlier answer's slip is history, and is told as it was, under one key."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    if arguments.strip() in ("", "null"):
        return {}
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) and _is_plain(value, _MAX_DEPTH) else {"arguments": arguments}


def _is_plain(value: Any, depth: int) -> bool:
    """Whether ``value`` is nested no deeper than ``depth`` and holds characters alone (JSON may spell surrogates)."""
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)
    if isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(item, depth - 1) for item in inner)
    return True


def _written(calls: Sequence[Message], form: Literal["list", "tags"]) -> str:
    """Calls as the model writes them: as MiniMax-M1, one JSON object a line, or each between tags of its own."""
    functions = [call["function"] for call in calls]
    heads = [json.dumps({"name": function.get("name")}, ensure_ascii=False)[:-1] for function in functions]
    lines = [
        f'{head}, "arguments": {_as_text(function.get("arguments"))}}}'
        for head, function in zip(heads, functions, strict=True)
    ]
    if form == "list":
        return "\n".join(["<tool_calls>", *lines, "</tool_calls>"])
    return "\n".join(f"<tool_call>\n{line}\n</tool_call>" for line in lines)


# How a template is tried.


def _found(
    contents: dict[str, tuple[Content, ...]], role: str, render: Callable[[Message], str | None]
) -> tuple[Content, ...]:
    """The forms in which the words of a ``role`` come out; noted in ``contents`` unless the template refuses them."""
    word, more = f"qzv{role}", _MORE
    forms: list[Content] = []
    refused = True
    tries: list[tuple[Content, Any, str]] = [
        ("string", word, word),
        ("parts", [_part(word), _part(more)], f"{word}.*{more}"),
        ("part", [_part(word)], word),
    ]
    for form, content, wanted in tries:
        text = render({"role": role, "content": content})
        refused = refused and text is None
        if text is not None and re.search(wanted, text, re.DOTALL) and not _shows_part(text, word):
            forms.append(form)
    if not refused:
        contents[role] = tuple(forms)
    return tuple(forms)


def _try_calls(
    render: Render, contents: Mapping[str, tuple[Content, ...]]
) -> tuple[_Calls | None, tuple[Content, ...] | None]:
    """How calls come out, and in which form their results do; None for the latter where results are refused."""
    asked = {"role": "user", "content": _give(_USER, contents.get("user", ()))}
    empty_text = _give("", contents.get("assistant", ()))
    best: tuple[int, _Calls | None, tuple[Content, ...] | None] = (-1, None, None)
    forms: tuple[Content, ...] = ("string", "part")
    empties: tuple[Literal[""] | None, ...] = ("", None)
    declared = (None, [_tool()])  # some write calls only where tools are declared
    for tools, short, form, empty in itertools.product(declared, (False, True), forms, empties):
        told = _give(_TOOL, (form,))
        attempt = partial(_called, render, asked, told, short, tools)
        texts: dict[Style, str | None] = {
            style: attempt(style, None if empty is None else empty_text) for style in _STYLES
        }
        style = _style(texts)
        text = texts[style or "text"] or texts["mapping"]
        if text is None:
            continue
        answered = _TOOL in text and not _shows_part(text, _TOOL)
        if (style is not None) + answered > best[0]:
            calls = None
            if style is not None:
                spoken = attempt(style, _give(_ASSISTANT, contents.get("assistant", ()))) or ""
                twice = attempt(style, None if empty is None else empty_text, others=(_OTHER,))
                calls = _Calls(style, empty, _shows_call(spoken, style), short, twice is None or _OTHER in twice)
            best = ((style is not None) + answered, calls, (form,) if answered else ())
        if best[0] == 2:
            break
    return best[1], best[2]


def _style(texts: Mapping[Style, str | None]) -> Style | None:
    """How arguments come out; where a template takes both, as the text that was written, unless it writes another."""
    shown: list[Style] = [style for style in _STYLES if _shows_call(texts[style] or "", style)]
    if len(shown) == 2:
        return "text" if texts["text"] == texts["mapping"] else "mapping"
    return shown[0] if shown else None


def _called(
    render: Render,
    asked: Message,
    told: Any,
    short: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    style: Style,
    content: Any,
    others: Sequence[str] = (),
) -> str | None:
    """The text of a chat: asked, called beside ``content`` with arguments in a ``style``, and told."""
    call_id = "qzv012345" if short else _CALL_ID
    given = [{_KEY: value} for value in (_VALUE, *others)]
    functions = [{"name": _NAME, "arguments": json.dumps(each) if style == "text" else each} for each in given]
    calls = [{"id": call_id, "type": "function", "function": function} for function in functions]
    called = {"role": "assistant", "content": content, "tool_calls": calls}
    return render([asked, called, {"role": "tool", "tool_call_id": call_id, "name": _NAME, "content": told}], tools)


def _shows_call(text: str, style: Style) -> bool:
    """Whether arguments came out: character by character, or their items, and not as Python spells them."""
    before_result = text.partition(_TOOL)[0]
    if style == "text":
        return json.dumps({_KEY: _VALUE}) in before_result
    return _KEY in before_result and _VALUE in before_result and str({_KEY: _VALUE}) not in before_result


def _shows_part(text: str, word: str) -> bool:
    """Whether ``word`` came out inside a part written as Python or JSON, and not by itself."""
    return re.search(rf"type\W+text\W+text\W+{word}|text\W+{word}\W+type\W+text", text) is not None


def _try_tools(source: str, render: Render, asked: Message) -> Literal["wrapped", "bare"] | None:
    if "function_setting=functions" in source:
        return "bare"  # MiniMax's, which write down whatever they are given
    forms: tuple[Literal["wrapped", "bare"], ...] = ("wrapped", "bare")
    for form in forms:
        text = render([asked], [_tool() if form == "wrapped" else _tool()["function"]])
        if text is not None and _NAME in text:
            return form
    return None


def _tool() -> dict[str, Any]:
    properties = {"qzvproperty": {"type": "string"}}
    function = {"name": _NAME, "description": _MORE, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
