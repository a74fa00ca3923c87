"""Check that a rendered chat contains what its messages say, so that no template drops words in silence."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leyden.core.errors import UserError
from leyden.tokenizer.template_form import TemplateForm, text_of

Message = Mapping[str, Any]

_WORD = re.compile(r"(?<![\w/])\w+")
_LETTERS = re.compile(r"qzv([0-9]+)xw*")
_MAX_SEARCHES = 16
"""So many messages are looked for in the whole text, where they do not follow in order: all may be many and long."""


def check_form(form: TemplateForm, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
    """Refuse messages and tools of a kind that a template of this ``form`` leaves out.

    Raises:
        UserError: which that is.
    """
    if tools and form.tools is None:
        raise UserError(
            "The model's chat template has no place for tools, so that the model would not know of them; leave "
            '"tools" out, or take a model whose template has one.'
        )
    for place, message in enumerate(messages):
        calls = message.get("tool_calls")
        if calls and form.calls is None and form.calls_as_text is None:
            raise UserError(
                f"Message {place} ({message['role']}) has tool_calls, which the model's chat template leaves out."
            )
        if isinstance(calls, list) and len(calls) > 1 and form.calls is not None and not form.calls.several:
            raise UserError(
                f"Message {place} ({message['role']}) has {len(calls)} tool_calls, of which the model's chat template "
                "writes down one; give it one a message."
            )
        if form.contents.get(message["role"]) == () and text_of(message.get("content")).strip():
            raise _lost(place, message)


def check_kept(messages: Sequence[Message], text: str, render: Callable[[Sequence[Message]], str]) -> None:
    """Refuse ``text`` where the template lost what messages say.

    Templates may change how it is written (trim it, write it as JSON, cut off an earlier answer's thoughts). Where the
    words are not found, others are put in their place: these must come out.

    Args:
        messages: of the chat, of OpenAI's form.
        text: what the template made of them.
        render: what it makes of others.

    Raises:
        UserError: which message was lost.
    """
    missing = _missing(messages, text)
    if missing:
        _check_missing(messages, missing, text, render)


def _missing(messages: Sequence[Message], text: str) -> list[int]:
    """The places of the messages whose words do not occur in ``text``, or were no longer looked for."""
    missing: list[int] = []
    at = num_searches = 0
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            continue  # many templates write the calls alone
        for words in _words(message.get("content")):
            found = text.find(words, at) if num_searches < _MAX_SEARCHES else -1
            if found >= 0:
                at = found + len(words)
                continue
            num_searches += 1
            if num_searches > _MAX_SEARCHES or words not in text:
                missing.append(place)
                break
    return missing


def _words(content: Any) -> list[str]:
    parts = [content] if isinstance(content, str) else [text_of([part]) for part in content or ()]
    return [part.strip() for part in parts if part.strip()]


def _check_missing(
    messages: Sequence[Message], missing: Sequence[int], text: str, render: Callable[[Sequence[Message]], str]
) -> None:
    """Refuse what was truly lost of the messages at the places ``missing``.

    Letters in the place of their words must come out, all of them. Where these do and the words themselves do not, the
    template looked at the words: of an earlier answer it may leave out what it likes, else only switches (``/think``).
    """
    letters = {place: _letters(text_of(messages[place].get("content")), place) for place in missing}
    other = _spaceless(render([_saying(message, letters.get(place)) for place, message in enumerate(messages)]))
    found: dict[int, int] = {}
    for run in _LETTERS.finditer(other):
        found[int(run[1])] = max(found.get(int(run[1]), 0), len(run[0]))
    shown: set[str] | None = None
    for place in missing:
        message = messages[place]
        lost = found.get(place, 0) < len(_spaceless(letters[place]))
        if not lost and message["role"] != "assistant":
            shown = shown or set(_WORD.findall(_plainly(text)))
            lost = not shown.issuperset(_WORD.findall(_plainly(text_of(message["content"]))))
        if lost:
            raise _lost(place, message)


def _letters(words: str, place: int) -> str:
    """Letters that occur nowhere else, as many and with the same spaces between them as in ``words``."""
    mark = f"qzv{place}x"
    return mark + re.sub(r"\S+", lambda word: "w" * len(word[0]), words[len(mark) :])


def _spaceless(text: str) -> str:
    """``text`` in lower case without white space, that which JSON spells included."""
    return "".join(text.split()).replace("\\n", "").replace("\\t", "").replace("\\r", "").casefold()


def _plainly(text: str) -> str:
    """``text`` in lower case without what JSON and HTML put before and for some characters."""
    if "\\" in text:
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
        text = re.sub(r"\\[ntrbf]", " ", text).replace("\\", "")
    return html.unescape(text).casefold()


def _saying(message: Message, words: str | None) -> Message:
    """``message`` with other words, or as it is."""
    if words is None:
        return message
    content = message["content"]
    others = [] if isinstance(content, str) else [part for part in content if part["type"] != "text"]
    return {**message, "content": [*others, {"type": "text", "text": words}] if others else words}


def _lost(place: int, message: Message) -> UserError:
    return UserError(
        f"The model's chat template leaves out what message {place} ({message['role']}) says. Leave that message out, "
        "or give the model a template that knows its role and content."
    )
