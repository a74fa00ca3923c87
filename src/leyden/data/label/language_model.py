"""What a stage asks of a language model, and what it gets back, whether the model is local or behind an endpoint.

``data`` lies below ``serve`` and cannot open a local model by itself: who runs a build hands in ``open_model``
(:attr:`leyden.data.stage.Corpus.open_model`), which makes a :class:`LanguageModel` of a model directory's path.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from leyden.core.config import Config
from leyden.data.documents import Message


@dataclass(frozen=True)
class ModelRequest:
    """One question to a model.

    Attributes:
        messages: a system message, if any, and the user's.
        max_tokens: of the answer.
        temperature: 0 takes the most probable token.
        seed: of the draws, where the temperature is above 0.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def key(self, model: str) -> str:
        """What the answer of the model of this identity is kept under: 32 hexadecimal digits."""
        turns = [[message.role, message.content] for message in self.messages]
        text = json.dumps([model, turns, self.max_tokens, self.temperature, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: its answer, or why the request was refused.
        finish: ``stop``: it said all it had to; ``length``: it met ``max_tokens``; ``refused``: the request is one that
            the model cannot take (too long for it, say), and asking again would not help.
    """

    text: str
    finish: Literal["stop", "length", "refused"] = "stop"


class LanguageModel(Protocol):
    """Answers requests, several at a time if it can."""

    @property
    def identity(self) -> str:
        """What tells its answers from another model's: address and name, or a digest of the weights."""
        ...

    def complete(self, requests: Sequence[ModelRequest]) -> Iterator[tuple[int, Reply]]:
        """Each request's index and answer, as they are ready, in any order.

        Raises:
            UserError: the model cannot be reached, or will answer none.
        """
        ...


OpenModel = Callable[[str], LanguageModel]
"""Opens the model of a directory."""


class ModelSettings(Config):
    """Which model a stage asks: a local one (``path``), or any OpenAI-compatible endpoint (``url`` and ``name``).

    An answer is kept and never asked for again; from a model served under the same address and name, however, nothing
    tells that its weights have changed: give it another name, or another folder for its answers.
    """

    path: Path | None = None
    """Directory of a local model."""
    url: str = Field(default="", pattern=r"^(https?://.+)?$")
    """What comes before ``/chat/completions``: ``http://localhost:8000/v1``."""
    name: str = ""
    """What the endpoint calls the model."""
    api_key_env: str = ""
    """The environment variable that holds the endpoint's key; keys have no place in recipes."""
    concurrency: int = Field(default=8, ge=1)
    """Requests under way at once."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Without a byte from the endpoint."""
    retries: int = Field(default=5, ge=0)
    """After a failure that may pass: no connection, time-out, 408, 429, 5xx, an answer that is not JSON."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Before the first retry; doubles with each, up to a minute, unless the endpoint says how long to wait."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (not self.url):
            raise ValueError("give either path (a local model) or url (an endpoint)")
        if self.url and not self.name:
            raise ValueError("an endpoint needs name, what it calls the model")
        return self

    def files(self) -> tuple[Path, ...]:
        """What of the disk its answers depend on."""
        return () if self.path is None else (self.path,)
