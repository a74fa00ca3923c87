"""Chats as text, and as tokens that nobody but the template can make special.

A message may contain the spelling of a special token (``<end_of_sentence>``). In the rendered text it looks like the
template's own. To tell them apart, the chat is rendered a second time with a mark, a character that occurs nowhere
else, put inside each such spelling and inside whatever could become one when strings meet (``<ima`` beside ``ge>``).
Special tokens are then recognised in the marked text, where only the template's are whole, and the marks are taken
out again.
"""

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.limited import LimitedProcess, LimitReached
from leyden.tokenizer import sandbox
from leyden.tokenizer.kept import check_form, check_kept
from leyden.tokenizer.template_form import TemplateForm, text_of

Message = Mapping[str, Any]

_MARKS = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use: no text gives these a meaning
_MAX_DEPTH = 200
_MINIMAX = resources.files("leyden.tokenizer").joinpath("minimax.jinja").read_text(encoding="utf-8")
_MAX_SOURCE = 1 << 20
_STRANGERS = LimitedProcess(Path(sandbox.__file__), seconds=10, memory_bytes=1 << 30)
_TRYING_SECONDS = 20
"""For all that is rendered to find a template's form; a sound one takes some milliseconds."""


def minimax_template() -> str:
    """Leyden's own chat template, of MiniMax-Text-01's format."""
    return _MINIMAX


class ChatTemplate:
    """A Jinja chat template, with the special tokens that it may name (``bos_token``, ...).

    Leyden's own is rendered here; every other one is a stranger's program, and runs in a process of its own, with
    limits of time and memory.
    """

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        self.source = source
        self._names = dict(names)
        self._run = sandbox.render if source == _MINIMAX else _STRANGERS.call

    @cached_property
    def form(self) -> TemplateForm:
        """What the template takes, which is found by trying.

        Raises:
            UserError: it takes more time or memory than it may.
        """
        end = time.monotonic() + _TRYING_SECONDS

        def attempt(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> str | None:
            if time.monotonic() > end:
                raise LimitReached(f"The chat template takes more than {_TRYING_SECONDS} seconds to be tried.", "time")
            try:
                return self.text(messages, tools, True, None).casefold()
            except LimitReached:
                raise
            except UserError:
                return None

        return TemplateForm.of(self.source, attempt)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat as one text, in which everything that the messages say occurs.

        Args:
            messages: each with a ``role``, and ``content``: a string, a list of parts
                ``{"type": "text", "text": ...}`` or ``{"type": "image"}``, or nothing (an assistant's tool call). They
                are given to the template in the form that it takes.
            tools: JSON descriptions of the functions that may be called.
            add_generation_prompt: whether the text ends where the assistant's answer begins.
            variables: further ones that the template knows (``enable_thinking``).

        Raises:
            UserError: a malformed message, or one that the template refuses (an unknown role) or leaves out.
        """
        return self.rendered(messages, tools, add_generation_prompt, variables)[0]

    def rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> tuple[str, list[Any]]:
        """The text, as :meth:`render` gives it; and messages, tools and variables as the template got them."""
        check_messages(messages)
        _check_depth([*messages, *(tools or ()), variables])
        form = self.form
        check_form(form, messages, tools)
        given_tools = form.give_tools(tools)

        def text(messages: Sequence[Message]) -> str:
            return self.text(form.give(messages), given_tools, add_generation_prompt, variables)

        given = form.give(messages)
        rendered = self.text(given, given_tools, add_generation_prompt, variables)
        check_kept(messages, rendered, text)
        return rendered, [given, given_tools, variables]

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        special: Sequence[str],
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]:
        """The chat as text with every look-alike of a ``special`` token broken by a mark; and the mark.

        Raises:
            UserError: as :meth:`render`; or the template acts on such a look-alike, so that a mark changes its result.
        """
        plain, given = self.rendered(messages, tools, add_generation_prompt, variables)
        mark = unused_characters(plain, 1)
        marked_given = marked(given, special, mark)
        if marked_given == given:
            return plain, mark
        marked_messages, marked_tools, marked_variables = marked_given
        text = self.text(marked_messages, marked_tools, add_generation_prompt, marked_variables)
        if text.replace(mark, "") != plain:
            raise UserError(
                "A message contains the text of a special token, which this chat template would act upon; remove it "
                f"from the message. Special tokens are: {' '.join(special)}"
            )
        return text, mark

    def render_open(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        special: Sequence[str],
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]:
        """As :meth:`render_marked`, up to the end of the last message's text, white space included.

        Raises:
            UserError: as :meth:`render_marked`; the last message's content is no text; or the template leaves it out.
        """
        check_messages(messages)
        content = messages[-1].get("content")
        if content is None or (not isinstance(content, str) and any(part["type"] != "text" for part in content)):
            raise UserError("Only a message whose content is text can be continued.")
        # Behind a character that is no white space, a template that trims has nothing to trim.
        plain = self.render(messages, tools, False, variables)
        end = unused_characters(plain + text_of(content), 1)
        open_messages = [*messages[:-1], {**messages[-1], "content": text_of(content) + end}]
        text, mark = self.render_marked(open_messages, tools, False, special, variables)
        before, found, _ = text.rpartition(end)
        if not found:
            raise UserError("The chat template leaves the last message out, so that it cannot be continued.")
        return before, mark

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        """What the template makes of messages and tools as they are."""
        if len(self.source) > _MAX_SOURCE:
            raise UserError(f"The chat template has {len(self.source)} characters, more than {_MAX_SOURCE}.")
        given = {"messages": list(messages), "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return self._run(self.source, {**(variables or {}), **self._names, **given})
        except ValueError as error:
            raise UserError(str(error)) from None
        except LimitReached as error:
            raise LimitReached(f"The chat template refused these messages: {error}.", error.reason) from None


def unused_characters(text: str, count: int) -> str:
    """``count`` different characters of private use that ``text`` does not hold.

    Raises:
        UserError: it holds too many of them.
    """
    first = _MARKS[0][0]
    if re.search(f"[{chr(first)}-{chr(first + count - 1)}]", text) is None:
        return "".join(map(chr, range(first, first + count)))
    held = set(text)
    every = (chr(code) for codes in _MARKS for code in codes)
    found = "".join(itertools.islice((mark for mark in every if mark not in held), count))
    if len(found) < count:
        raise UserError("The messages hold every character of private use that Unicode has; leave one of them out.")
    return found


def _check_depth(value: Any, depth: int = _MAX_DEPTH) -> None:
    """Refuse what is nested so deeply that no library can be trusted with it."""
    if not depth:
        raise UserError(f"A message or a tool is nested more than {_MAX_DEPTH} levels deep.")
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _check_depth(item, depth - 1)


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


def marked(value: Any, special: Sequence[str], mark: str) -> Any:
    """``value`` with the strings in it marked, at any depth."""
    if isinstance(value, str):
        return _mark_text(value, special, mark)
    if isinstance(value, Mapping):
        return {marked(key, special, mark): marked(item, special, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [marked(item, special, mark) for item in value]
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
    beginnings, ends = _parts_of(tuple(special))
    if body.endswith(beginnings):
        tail = mark + tail
    if body.startswith(ends):
        head = head + mark
    return head + body + tail


@lru_cache(maxsize=8)
def _parts_of(special: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What special tokens begin with, and what they end with, the whole tokens left out."""
    beginnings = {token[:length] for token in special for length in range(1, len(token))}
    ends = {token[length:] for token in special for length in range(1, len(token))}
    return tuple(beginnings), tuple(ends)
