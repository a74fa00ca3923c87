"""What every route works with: the engine's loop, the model it serves, and the server's settings."""

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fastapi import Request as HttpRequest

from leyden.core.errors import suggest
from leyden.core.log import logger
from leyden.serve.http.budget import Budget
from leyden.serve.http.conversations import Conversations
from leyden.serve.http.errors import ApiError, unavailable
from leyden.serve.http.generation import PromptGeneration
from leyden.serve.http.loop import Loop
from leyden.serve.http.metrics import Metrics
from leyden.serve.http.settings import ServerSettings
from leyden.serve.http.streaming import BackgroundTasks
from leyden.serve.request import salted
from leyden.serve.sampling import Sampling
from leyden.serve.threads import Threads
from leyden.tokenizer import Tokenizer

_THREADS = 8
_BULK_THREADS = 2
_MOST_IGNORED = 256
"""Names that are told of: they come from clients."""
_LEAST_BODY_BYTES = 4 << 20
_MOST_BODY_BYTES = 16 << 20
_BYTES_PER_TOKEN = 32
"""Of a text in JSON; ids take up to 8."""


@dataclass(frozen=True)
class ServedModel:
    """The model, by its names and limits.

    Attributes:
        names: that clients may ask for it by, the first being its own.
        tokenizer: of its texts.
        context_tokens: of prompt and completion together, at most.
        vocab_size: ids of tokens lie below.
        root: the directory or hub id it came from.
        created: when it was loaded, in seconds since 1970.
        weights: what tells these weights and settings from others, for ``system_fingerprint``.
        notice: what whoever chats with it should know, where something is known.
        adapters: names of adapters, which clients ask for as for models.
    """

    names: tuple[str, ...]
    tokenizer: Tokenizer
    context_tokens: int
    vocab_size: int
    root: str
    created: int = field(default_factory=lambda: int(time.time()))
    weights: str = ""
    notice: str | None = None
    adapters: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All names that clients may ask for."""
        return (*self.names, *self.adapters)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with whatever changes answers: the weights, the tokenizer, the engine's settings."""
        everything = f"{self.weights}\n{self.tokenizer.fingerprint}\n{self.context_tokens}"
        return f"fp_{hashlib.sha256(everything.encode()).hexdigest()[:12]}"

    def called(self, name: str | None) -> str:
        """The name a response gives the model: as the request called it.

        Raises:
            ApiError: 404 for another model's name.
        """
        if name is None:
            return self.names[0]
        if name not in self.known:
            message = f"There is no model {name[:100]!r} here{suggest(name[:100], self.known)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    def check_vocabulary(self, tokens: Sequence[int], param: str) -> None:
        """Raise an ApiError (400, about the field ``param``) unless the model has all ``tokens``."""
        if tokens and max(tokens) >= self.vocab_size:
            message = f"Token {max(tokens)} is not in the vocabulary; ids lie in 0..{self.vocab_size - 1}."
            raise ApiError(400, message, param=param, code="invalid_value")

    def check(self, tokens: Sequence[int], max_tokens: int | None, param: str) -> None:
        """Refuse a prompt that has another vocabulary's tokens, or that does not fit with its completion.

        Args:
            tokens: of the prompt.
            max_tokens: asked for; None leaves it open, but at least one must fit.
            param: the field that the prompt came in.
        """
        if len(tokens) + (max_tokens or 1) > self.context_tokens:
            asked = f" and {max_tokens} more were asked for" if max_tokens else ""
            raise ApiError(
                400,
                f"The model's context is {self.context_tokens} tokens; the prompt has {len(tokens)}{asked}. "
                "Shorten the prompt" + (" or ask for fewer." if max_tokens else "."),
                param=param,
                code="context_length_exceeded",
            )
        self.check_vocabulary(tokens, param)


@dataclass(frozen=True)
class Service:
    """What every route works with.

    Attributes:
        background: what is done after an answer has been given, which no client waits for.
    """

    loop: Loop
    model: ServedModel
    settings: ServerSettings
    background: BackgroundTasks = field(default_factory=BackgroundTasks, init=False)

    @cached_property
    def threads(self) -> Threads:
        """For what requests of ordinary size take before and behind the engine."""
        return Threads("request", _THREADS)

    @cached_property
    def bulk(self) -> Threads:
        """For requests with large bodies, which no other request waits for."""
        return Threads("large request", _BULK_THREADS)

    @cached_property
    def budget(self) -> Budget:
        """For large bodies."""
        return Budget(max(self.settings.max_bodies_bytes, self.max_body_bytes))

    @cached_property
    def max_body_bytes(self) -> int:
        """Of one body: what is set, else what a prompt that fills the model's context takes, in some bounds."""
        fits = min(max(_LEAST_BODY_BYTES, self.model.context_tokens * _BYTES_PER_TOKEN), _MOST_BODY_BYTES)
        return self.settings.max_body_bytes or fits

    @cached_property
    def ignore(self) -> Callable[[str], None] | None:
        """Is told of fields that requests should not have; None where they are refused for them."""
        known: set[str] = set()

        def tell(name: str) -> None:
            if name not in known and len(known) < _MOST_IGNORED:
                known.add(name)
                logger(__name__).info("Requests carry the field %r; it is ignored (--ignore-unknown-fields).", name)

        return tell if self.settings.ignore_unknown_fields else None

    @cached_property
    def metrics(self) -> Metrics:
        """What is measured."""
        return Metrics(self.loop, self.model.names[0])

    @property
    def weights_version(self) -> int:
        """How often the engine's weights became others since the server started."""
        return self.loop.statistics.weights_version

    @property
    def fingerprint(self) -> str:
        """For ``system_fingerprint``: that of the model, with the version of weights that have replaced its own."""
        version = self.weights_version
        return f"{self.model.fingerprint}_{version}" if version else self.model.fingerprint

    @cached_property
    def conversations(self) -> Conversations | None:
        """Chats that are kept; None where none are."""
        settings = self.settings
        if settings.conversations is None:
            return None
        bytes_each = int(settings.conversations_gigabytes * (1 << 30) / max(1, len(settings.api_keys)))
        return Conversations(settings.conversations, self.loop, bytes_each)

    def salt(self, request: HttpRequest, given: str | None, model: str) -> str:
        """What separates a request's texts in the prefix cache from those of others (``Request.salt`` of the engine).

        Args:
            request: whose key is known.
            given: what the client adds.
            model: its name, or that of an adapter, which the salt then says.
        """
        owner = "" if self.settings.shared_cache else owner_of(request)
        adapter = model if model in self.model.adapters else ""
        return salted(adapter, f"{owner}/{given or ''}" if owner or given else "")

    def require_alive(self) -> None:
        """Raise an ApiError (503) where the engine is dead."""
        if not self.loop.alive:
            raise unavailable("The engine has stopped; the server must be started again.")

    def require(self) -> None:
        """Raise an ApiError (503) where the engine takes no requests now."""
        self.require_alive()
        if not self.loop.ready:
            raise unavailable("The server takes no further requests; it is starting or shutting down.")

    def generate(
        self,
        name: str,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        salt: str,
        cache_completion: bool = True,
    ) -> PromptGeneration:
        """The completions of one request's prompts, which the engine does not have yet."""
        return PromptGeneration(
            self.loop, self.metrics, name, prompts, sampling, salt=salt, cache_completion=cache_completion
        )


def owner_of(request: HttpRequest) -> str:
    """What stands for the API key of a request; nothing where there are none."""
    return getattr(request.state, "owner", "")


def new_id(prefix: str) -> str:
    """A name for a response that no other has."""
    return f"{prefix}-{uuid.uuid4().hex}"
