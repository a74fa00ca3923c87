"""The request and response schemas of ``/v1/completions``."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator

from leyden.serve.http.protocol.common import (
    EndReason,
    GenerationRequest,
    PromptLogprobs,
    TokenIds,
    Usage,
)
from leyden.serve.http.protocol.neutral import Neutral
from leyden.serve.sampling.config import MAX_TOP

MAX_PROMPTS = 1024
MAX_CHOICES = 4096


def _not_empty(tokens: list[int]) -> list[int]:
    if not tokens:
        raise ValueError("a prompt has at least one token")
    return tokens


PromptIds = Annotated[TokenIds, AfterValidator(_not_empty)]


def _kind(value: Any) -> str:
    """Which kind of prompt ``value`` was meant to be, by its first item."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "token_lists" if isinstance(first, list) else "tokens"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("texts")]
    | Annotated[PromptIds, Tag("tokens")]
    | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("token_lists")],
    Discriminator(_kind),
]


class CompletionRequest(GenerationRequest):
    """Prompts to go on from."""

    prompt: Prompt | None
    """A text, a list of texts, the ids of a text's tokens, or a list of such lists. A text begins with the token that
    begins a document; ids are taken as they are. Null is an empty text."""
    echo: bool | None = None
    """Let the text begin with the prompt, and its log-probabilities with the prompt's."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    """Tell the log-probability of each token, and so many of the most probable ones in its place."""
    add_special_tokens: Annotated[None, Neutral(True)] = None
    """A text begins with the token that begins a document."""
    suffix: Annotated[None, Neutral("")] = None
    """Texts are gone on from, not filled in."""
    best_of: Annotated[None, Neutral(1)] = None
    """All completions that are drawn are told."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if len(self.prompts()) * (self.n or 1) > MAX_CHOICES:
            raise ValueError(f"the prompts times n are more than {MAX_CHOICES} completions; ask for fewer at once")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """All of them, in a list."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore[reportReturnType] - all of them are, then
        return self.prompt  # pyright: ignore[reportReturnType]


class CompletionLogprobs(BaseModel):
    """Log-probabilities, token by token.

    A token that is no whole text by itself (a part of a character) is told by its bytes, as in ``bytes:\\xe2\\x98``.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A completion, or a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: EndReason | None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionResponse(BaseModel):
    """Completions, or, in a stream, a piece of one; the last one of a stream may have usage alone."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
