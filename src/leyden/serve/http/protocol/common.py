"""Fields that the requests for completions and for chats share.

Fields are OpenAI's, and of vLLM's further ones those that change what is drawn. A field that does nothing for the
result (``user``) is accepted, one that would do something but is not supported takes null and what means the same
(:mod:`leyden.serve.http.protocol.neutral`), any other is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, Field, WithJsonSchema, model_validator

from leyden.serve.http.protocol.constraints import Constrained
from leyden.serve.http.protocol.neutral import Neutral, OtherServers, Wire
from leyden.serve.sampling import Sampling
from leyden.serve.sampling.config import MAX_TOP

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopText = Annotated[str, Field(max_length=1024)]
StopTexts = Annotated[list[StopText], Field(max_length=64, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
LIMIT_NAMES = AliasChoices("max_tokens", "max_new_tokens", "n_predict", "num_predict")
"""What others call it."""
_PENALTY_NAMES = AliasChoices("repetition_penalty", "repeat_penalty")
_MOST_TOKEN = 2**31 - 1
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": _MOST_TOKEN}}


def _check_ids(tokens: list[Any]) -> list[int]:
    """In Python, so that other threads go on while a list of millions is looked at."""
    for place, token in enumerate(tokens):
        if type(token) is not int or not 0 <= token <= _MOST_TOKEN:
            raise ValueError(f"item {place} is not the id of a token, a whole number from 0 to {_MOST_TOKEN}")
    return tokens


TokenIds = Annotated[list[Any], AfterValidator(_check_ids), WithJsonSchema(_IDS_SCHEMA)]
EndReason = Literal["stop", "length"]


class StreamOptions(Wire):
    """What a stream tells besides its text."""

    include_usage: bool | None = None
    """Let a last chunk without choices tell the whole request's usage; in all others ``usage`` is null."""
    continuous_usage_stats: bool | None = None
    """With ``include_usage``: let every chunk tell the usage so far."""
    include_obfuscation: Annotated[None, Neutral(False)] = None
    """Events are as long as what they tell."""


class GenerationRequest(OtherServers, Constrained):
    """How the next tokens are drawn, and when the text ends; null is as good as leaving a field out."""

    model: str | None = None
    """One of the names of the served model, from ``/v1/models``; the first where left out."""
    max_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1, validation_alias=LIMIT_NAMES)
    """Tokens of a completion at most; with the prompt's, no more than the model's context."""
    min_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Until so many are drawn, no token that ends the text is."""
    n: int | None = Field(default=None, ge=1, le=128)
    """Completions of each prompt; 1 where left out. Each draws from random numbers of its own."""
    temperature: float | None = Field(default=None, ge=0, le=100)
    """1 where left out; 0 takes the most probable token."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Draw among the fewest tokens whose probabilities add up to this; 1 where left out, 0 takes the most probable."""
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    """Draw among so many of the most probable tokens; all where left out, 0 or -1."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Draw among tokens at least this fraction as probable as the most probable one; 0 where left out."""
    top_n_sigma: float | None = Field(default=None, gt=0, le=1000)
    """Draw among tokens whose logit is at most so many standard deviations below the largest; all where left out."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=100, validation_alias=_PENALTY_NAMES)
    """Divides the positive logits of tokens that occurred, in the prompt too, and multiplies the negative ones."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted from the logits of tokens that the completion holds."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted from the logit of a token as often as the completion holds it."""
    logit_bias: dict[BiasedToken, Bias] | None = Field(default=None, max_length=1024)
    """Added to the logits of tokens, by their ids."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    """The same seed and prompt give the same tokens, whatever else the server does."""
    stop: StopText | StopTexts | None = None
    """The text ends before the first of these that appears; an empty one is as good as none."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = None
    """The text ends before the first of these tokens."""
    ignore_eos: bool | None = None
    """Go on after the tokens that end a turn or a document."""
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    """Tell the log-probability of each of the prompt's tokens, and so many of the most probable ones in its place."""
    stream: bool | None = None
    """Send the completion piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    """What the stream tells besides; with ``stream`` alone."""
    user: str | None = Field(default=None, max_length=4096)
    """Has no effect here."""
    request_id: str | None = Field(default=None, max_length=4096)
    """Has no effect here; the header ``X-Request-Id`` has."""
    cache_salt: str | None = Field(default=None, min_length=1, max_length=256)
    """Only prompts with the same salt share what the server keeps of them; of one API key, or of all with
    ``--shared-cache``."""

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for a stream; set stream to true, or leave it out")
        return self

    def sampling(self, max_tokens: int, **more: Any) -> Sampling:
        """The same for the engine; ``more`` of its fields go before those given here.

        Raises:
            UserError: fields that contradict each other.
        """
        stop = [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        same = Sampling.model_fields.keys() & GenerationRequest.model_fields.keys()
        given = {name: getattr(self, name) for name in same} | {
            "max_tokens": max_tokens,
            "temperature": 0.0 if self.top_p == 0 else self.temperature,
            "top_p": self.top_p or None,
            "top_k": self.top_k if self.top_k is not None and self.top_k > 0 else None,
            "logit_bias": bias or None,
            "stop": stop or None,
            "grammar": self.constraint(),
            **more,
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class PromptTokensDetails(BaseModel):
    """What of the prompts was not read again."""

    cached_tokens: int


class Usage(BaseModel):
    """What a response cost, all its completions together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class PromptLogprob(BaseModel):
    """One token in a place of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each token of a prompt but the first, by token id; vLLM's shape."""
