"""OpenAI's messages of a chat: their shape, what may follow what, and the tokens that a model reads.

The fields are those of OpenAI's chat completions. What only text can be is text here: an image, a sound or a file is
refused, and so is an unknown field. Fields that a client sends back because an answer carried them (``refusal``,
``annotations``) may be there, empty.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from leyden.core.errors import UserError
from leyden.serve.http.protocol.common import Wire
from leyden.tokenizer import Tokenizer

_SHOWN_IDS = 8
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""Of a function or a speaker: templates write it without quotes, so that it must not hold anything else."""


class TextPart(Wire):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


Text = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class SystemMessage(Wire):
    """What the model is told before the conversation (``developer`` is OpenAI's newer word for it)."""

    role: Literal["system", "developer"]
    content: Text
    name: Name | None = None


class UserMessage(Wire):
    """What the user says."""

    role: Literal["user"]
    content: Text
    name: Name | None = None


class CalledFunction(Wire):
    """Which function an answer called, and with what: JSON, as the model wrote it."""

    name: Name
    arguments: Annotated[
        str,
        BeforeValidator(lambda given: "" if given is None else given),  # as some clients send a call without any
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}, mode="validation"),
    ]


class ToolCall(Wire):
    """One call of a function by an answer."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Wire):
    """What the model answered: text, calls of functions, or both."""

    role: Literal["assistant"]
    content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    name: Name | None = None
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Wire):
    """What a called function returned."""

    role: Literal["tool"]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]
    content: Text
    name: Name | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role", title="ChatMessage")
]


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a chat, by the tokenizer's template; text in messages never becomes a special token.

    Args:
        tokenizer: with a chat template.
        messages: in order.
        tools: the functions that may be called, as OpenAI's ``{"type": "function", "function": {...}}``.
        add_generation_prompt: whether the tokens end where an answer begins.
        continue_final_message: whether they end with the text of the last message instead, for the model to go on.
        variables: further ones for the template.

    Raises:
        UserError: an order that no conversation has, or what the template refuses.
    """
    check_order(messages)
    if continue_final_message:
        if add_generation_prompt:
            raise UserError(
                "continue_final_message goes on with the last message and add_generation_prompt begins another; set "
                "one of them to false."
            )
        last = messages[-1]
        if isinstance(last, AssistantMessage) and (last.tool_calls or not text_of(last.content)):
            raise UserError("continue_final_message: the last message has no text to go on from, or ends with a call.")
    return _encode(tokenizer, messages, tools, add_generation_prompt, continue_final_message, variables)


def answered(
    messages: Sequence[ChatMessage], answer: AssistantMessage, *, continue_final_message: bool = False
) -> list[ChatMessage]:
    """A chat with its answer, as a client sends it with the next turn."""
    if not continue_final_message:
        return [*messages, answer]
    *before, last = messages
    return [*before, last.model_copy(update={"content": text_of(last.content) + text_of(answer.content)})]


def encode_answered(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens with which the next prompt of a chat begins, by what :func:`answered` gives.

    They need not be those that were read and drawn: the text is divided into tokens anew, and the template has its own
    ways to write down calls and earlier answers, and to put the tools behind all turns. So two next turns are encoded,
    and what they have in common is taken.
    """
    calls = messages[-1].tool_calls if isinstance(messages[-1], AssistantMessage) else None

    def turn(text: str) -> ChatMessage:
        if calls:
            return ToolMessage(role="tool", tool_call_id=calls[0].id, content=text)
        return UserMessage(role="user", content=text)

    one, other = (_encode(tokenizer, [*messages, turn(text)], tools, True, False, variables) for text in ("0", "1"))
    pairs = zip(one, other, strict=False)
    return one[: next((place for place, (here, there) in enumerate(pairs) if here != there), len(one))]


def _encode(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, Any] | None,
) -> list[int]:
    knows_developers = "developer" in (tokenizer.chat_template or "")
    return tokenizer.encode_chat(
        [_plain(message, knows_developers) for message in messages],
        list(tools) if tools else None,
        add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=variables,
    )


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message, its parts joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def check_order(messages: Sequence[ChatMessage]) -> None:
    """Raise a UserError unless every result answers a call, and every call that another turn follows has its result."""
    if not messages:
        raise UserError('"messages" is empty; a chat has at least one: [{"role": "user", "content": "..."}].')
    open_calls: dict[str, None] = {}
    for place, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in open_calls:
                known = f"one of {_some(open_calls)}" if open_calls else "there is no call to answer"
                raise UserError(
                    f"messages[{place}] has tool_call_id {message.tool_call_id!r}; a message with the role tool "
                    f"follows the assistant's tool_calls and answers one of them once ({known})."
                )
            del open_calls[message.tool_call_id]
            continue
        if open_calls:
            raise UserError(
                f"messages[{place}] comes before the results of the calls {_some(open_calls)}; add a message with "
                "the role tool for each."
            )
        if isinstance(message, AssistantMessage):
            open_calls = _call_ids(message, place)
    if open_calls:
        raise UserError(f"the calls {_some(open_calls)} have no results; add a message with the role tool for each.")


def _some(ids: Iterable[str]) -> str:
    """The first of ``ids``, and whether there are more."""
    first = list(islice(ids, _SHOWN_IDS + 1))
    return ", ".join(first[:_SHOWN_IDS]) + (" and more" if len(first) > _SHOWN_IDS else "")


def _call_ids(message: AssistantMessage, place: int) -> dict[str, None]:
    calls = message.tool_calls or []
    if message.content is None and not calls:
        raise UserError(f"messages[{place}] (assistant) has neither content nor tool_calls; give it one of them.")
    ids = dict.fromkeys(call.id for call in calls)
    if len(ids) != len(calls):
        raise UserError(f"messages[{place}] (assistant) has two tool_calls of the same id; ids are unique.")
    return ids


def _plain(message: ChatMessage, knows_developers: bool) -> dict[str, Any]:
    """A message as the tokenizer takes it; a developer is a system where the template knows no developer."""
    plain = message.model_dump(include={"role", "content", "name", "tool_call_id", "tool_calls"}, exclude_none=True)
    if message.role == "developer" and not knows_developers:
        plain["role"] = "system"
    return plain
