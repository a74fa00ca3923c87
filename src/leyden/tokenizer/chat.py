"""Chats as text, and as tokens that nobody but the template can make special.

A message may contain the spelling of a special token (``<end_of_sentence>``). In the rendered text it looks like the
template's own. To tell them apart, the chat is rendered a second time with a mark, a character that occurs nowhere
else, put inside each such spelling and inside whatever could become one when strings meet (``<ima`` beside ``ge>``).
Special tokens are then recognised in the marked text, where only the template's are whole, and the marks are taken
out again.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2

from leyden.core.errors import UserError
from leyden.tokenizer.sandbox import Sandbox, render

Message = Mapping[str, Any]

_MARKS = range(0xF0000, 0xFFFFE)  # private use: no text gives these a meaning


class ChatTemplate:
    """A Jinja chat template, with the special tokens that it may name (``bos_token``, ...)."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self.source = source
        self._names = dict(names)

    @cached_property
    def _template(self) -> jinja2.Template:
        return Sandbox().compile_bounded(self.source)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        """The chat as one text.

        Args:
            messages: each with a ``role``, and ``content``: a string, a list of parts
                ``{"type": "text", "text": ...}`` or ``{"type": "image"}``, or nothing (an assistant's tool call).
            tools: JSON descriptions of the functions that may be called.
            add_generation_prompt: whether the text ends where the assistant's answer begins.

        Raises:
            UserError: a malformed message, or one that the template refuses (an unknown role).
        """
        check_messages(messages)
        variables = {"messages": list(messages), "tools": tools, "add_generation_prompt": add_generation_prompt}
        return render(self._template, {**self._names, **variables})

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        special: Sequence[str],
    ) -> tuple[str, str]:
        """The chat as text with every look-alike of a ``special`` token broken by a mark; and the mark.

        Raises:
            UserError: as :meth:`render`; or the template acts on such a look-alike, so that a mark changes its result.
        """
        plain = self.render(messages, tools, add_generation_prompt)
        mark = next(chr(code) for code in _MARKS if chr(code) not in plain)
        marked_messages = [_marked(message, special, mark) for message in messages]
        marked_tools = None if tools is None else _marked(list(tools), special, mark)
        if marked_messages == list(messages) and marked_tools == tools:
            return plain, mark
        marked = self.render(marked_messages, marked_tools, add_generation_prompt)
        if marked.replace(mark, "") != plain:
            raise UserError(
                "A message contains the text of a special token, which this chat template would act upon; remove it "
                f"from the message. Special tokens are: {' '.join(special)}"
            )
        return marked, mark

    def render_open(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, special: Sequence[str]
    ) -> tuple[str, str]:
        """As :meth:`render_marked`, up to the end of the last message's text, white space included.

        Raises:
            UserError: as :meth:`render_marked`; the last message's content is not a string; or the template leaves it
                out.
        """
        check_messages(messages)
        content = messages[-1].get("content")
        if not isinstance(content, str):
            raise UserError("Only a message whose content is a string can be continued.")
        # Behind a character that is no white space, a template that trims has nothing to trim.
        plain = self.render(messages, tools, add_generation_prompt=False)
        end = next(chr(code) for code in _MARKS if chr(code) not in plain and chr(code) not in content)
        open_messages = [*messages[:-1], {**messages[-1], "content": content + end}]
        text, mark = self.render_marked(open_messages, tools, False, special)
        before, found, _ = text.rpartition(end)
        if not found:
            raise UserError("The chat template leaves the last message out, so that it cannot be continued.")
        return before, mark


def check_messages(messages: Any) -> None:
    """Raise a UserError, which names the message, unless every message has the shape of one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise UserError('A chat is a list of one message or more: [{"role": "user", "content": "..."}].')
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f'Message {place} is not a mapping with a "role": {_short(message)}.')
        _check_content(message.get("content"), f"Message {place} ({message['role']})")


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise UserError(f'{where}: "content" is a string or a list of parts, not {_short(content)}.')
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise UserError(f'{where}: a part of the content has no "type": {_short(part)}.')
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise UserError(f'{where}: a part of type "text" needs a string "text": {_short(part)}.')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _marked(value: Any, special: Sequence[str], mark: str) -> Any:
    """``value`` with the strings in it marked, at any depth."""
    if isinstance(value, str):
        return _mark_text(value, special, mark)
    if isinstance(value, Mapping):
        return {_marked(key, special, mark): _marked(item, special, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, special, mark) for item in value]
    return value


def _mark_text(text: str, special: Sequence[str], mark: str) -> str:
    """Break every special token in ``text``, and every piece at its ends that a neighbour could complete.

    Templates trim white space, so the ends are those of the trimmed text.
    """
    for token in special:
        text = text.replace(token, token[0] + mark + token[1:])
    body = text.strip()
    if not body:
        return text
    start = text.index(body)
    head, tail = text[:start], text[start + len(body) :]
    if any(body.endswith(token[:length]) for token in special for length in range(1, len(token))):
        tail = mark + tail
    if any(body.startswith(token[length:]) for token in special for length in range(1, len(token))):
        head = head + mark
    return head + body + tail
