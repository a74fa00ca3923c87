"""The request and response schemas of ``/v1/chat/completions``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, JsonValue, model_validator

from leyden.serve.http.chat_messages import ChatMessage, Name, Text, ToolCall
from leyden.serve.http.protocol.common import LIMIT_NAMES, GenerationRequest, PromptLogprobs, Usage
from leyden.serve.http.protocol.neutral import Neutral, NotSupported, Wire
from leyden.serve.http.response_format import ResponseFormat
from leyden.serve.http.tools import ToolChoice, Tools
from leyden.serve.sampling.config import MAX_TOP

MAX_MESSAGES = 16_384
Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
ShortText = Annotated[str, Field(max_length=512)]


class Prediction(Wire):
    """What a client expects much of the answer to be."""

    type: Literal["content"]
    content: Text


class ChatRequest(GenerationRequest):
    """A conversation to answer."""

    messages: Messages
    """The conversation so far."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1, validation_alias=LIMIT_NAMES)
    """The older name of ``max_completion_tokens``."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Tokens of an answer at most; what the model's context has room for where left out."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    """With ``logprobs``: and so many of the most probable ones in its place."""
    tools: Annotated[Tools, Field(fail_fast=True)] | None = None
    """Functions that the answer may call."""
    tool_choice: ToolChoice | None = None
    """Whether it may (``auto``), must (``required``, or one function), or must not (``none``)."""
    parallel_tool_calls: bool | None = None
    """Whether it may call several; true where left out."""
    response_format: ResponseFormat | None = None
    """What the answer must be."""
    add_generation_prompt: bool | None = None
    """Whether the prompt ends where an answer begins; true where left out, unless the last message goes on."""
    continue_final_message: bool | None = None
    """Whether the answer goes on with the text of the last message."""
    conversation: Name | None = None
    """Keep what the model has read of this chat under this name, so that it need not be read again after the server's
    next start (Leyden's own field; the messages are sent whole all the same)."""
    metadata: dict[ShortText, ShortText] | None = Field(default=None, max_length=16)
    """Has no effect here."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    safety_identifier: ShortText | None = None
    """Has no effect here."""
    prompt_cache_key: ShortText | None = None
    """Has no effect here: every prompt is looked up in the cache."""
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    """Has no effect here: what was read is kept until other texts need the room."""
    prompt_cache_options: Annotated[None, Neutral({}, {"mode": "implicit"}, {"mode": "implicit", "ttl": "30m"})] = None
    """Every prompt is looked up in the cache."""
    prediction: Prediction | None = None
    """Has no effect here: it could make the answer come sooner, and changes nothing about it."""
    service_tier: Literal["auto", "default"] | None = None
    """Has no effect here."""
    chat_template_kwargs: dict[str, JsonValue] | None = Field(default=None, max_length=64)
    """Variables for the chat template, such as ``{"enable_thinking": false}``; those that it does not know have no
    effect."""
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    """Answers are text."""
    echo: Annotated[None, Neutral(False)] = None
    """An answer holds what is new alone."""
    add_special_tokens: Annotated[None, Neutral(False)] = None
    """What begins a chat, its template writes."""
    chat_template: Annotated[None, Neutral("")] = None
    """The template is the model's."""
    documents: Annotated[None, Neutral([])] = None
    """What the model is to know stands in the messages."""
    mm_processor_kwargs: Annotated[None, Neutral({})] = None
    """Messages are text."""
    audio: NotSupported = None
    """Answers are text."""
    function_call: Annotated[None, Neutral("none", "auto")] = None
    """The older name of ``tool_choice``; without ``functions`` it says nothing."""
    functions: Annotated[None, Neutral([])] = None
    """The older name of ``tools``."""
    moderation: NotSupported = None
    """Nothing is judged."""
    reasoning_effort: Annotated[None, Neutral("none")] = None
    """Answers have no part that is told apart."""
    verbosity: Annotated[None, Neutral("medium")] = None
    """How long an answer is, the model knows."""
    web_search_options: NotSupported = None
    """Nothing is looked up."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.conversation is not None and (self.n or 1) > 1:
            raise ValueError("a conversation goes on with one answer; leave n or conversation out")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same and differ; leave one of them out")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens of an answer at most, as asked for."""
        return self.max_completion_tokens or self.max_tokens


class TopLogprob(BaseModel):
    """A token, by itself: its text, with U+FFFD for a part of a character, and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token of an answer, and the most probable ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities, token by token."""

    content: list[ChatLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """What the model answered."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


ChatEnd = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatEnd


class ChatCompletion(BaseModel):
    """Answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None


class FunctionDelta(BaseModel):
    """A piece of a call."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """A piece of a call; its id and type with the first piece alone."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(BaseModel):
    """A piece of an answer's message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatPiece(BaseModel):
    """A piece of an answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatEnd | None


class ChatChunk(BaseModel):
    """An event of a stream; the last one may have usage alone."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatPiece]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None
