"""Answers of a model behind an OpenAI-compatible endpoint.

Texts go to ``/completions``, chats to ``/chat/completions``. Likelihoods ask ``/completions`` for the log-probabilities
of the prompt (``echo``), which Leyden's server and vLLM give, and take token ids as the prompt.
"""

import functools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from leyden.core.errors import UserError
from leyden.core.json_service import Patience, RefusedError, in_parallel, post_json
from leyden.evaluate.sources.source import ReadProgress
from leyden.evaluate.task import Answer, Question
from leyden.tokenizer import Tokenizer

_BACKOFF_SECONDS = 1.0


@dataclass(frozen=True)
class EndpointSettings:
    """Where an endpoint is, and how it is asked.

    Attributes:
        url: of the API, up to and with ``/v1``.
        model: the name that the endpoint knows the model by; None asks ``/models`` for the first.
        api_key_env: the environment variable that holds the key; None sends none.
        concurrency: requests at a time.
        timeout_seconds: for one answer; long prompts take long.
        retries: how often a request that failed is sent again.
        backoff_seconds: the wait before the first of these; it doubles each time.
    """

    url: str
    model: str | None = None
    api_key_env: str | None = None
    concurrency: int = 4
    timeout_seconds: float = 600.0
    retries: int = 3
    backoff_seconds: float = _BACKOFF_SECONDS


class EndpointSource:
    """Asks an endpoint, several requests at a time.

    Args:
        settings: where it is.
        tokenizer: turns prompts of tokens into text, and has to be the endpoint's for likelihoods.

    Raises:
        UserError: the key's environment variable is not set, or the endpoint cannot be asked for its models.
    """

    def __init__(self, settings: EndpointSettings, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._url = settings.url.rstrip("/")
        self._stop = threading.Event()
        self._patience = Patience(settings.timeout_seconds, settings.retries, settings.backoff_seconds, self._stop)
        self._client = httpx.Client(
            headers=_headers(settings),
            timeout=settings.timeout_seconds,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        self.model = settings.model or self._first_model()
        self.identity = f"endpoint {self._url} {self.model}"
        self._prompt_tokens = self._cached_tokens = 0
        self._tells_cached = True

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """See :class:`leyden.evaluate.sources.source.Source`; the answers come as the endpoint gives them."""
        asked = in_parallel(self._ask, questions, self._settings.concurrency, self._stop)
        with closing(asked):
            for index, (answer, usage) in asked:
                self._account(answer, usage)
                yield index, answer

    @property
    def reading(self) -> ReadProgress:
        """By the endpoint's ``usage``."""
        return ReadProgress(
            self._prompt_tokens, self._prompt_tokens - self._cached_tokens if self._tells_cached else None
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _account(self, answer: Answer, usage: dict[str, Any]) -> None:
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        self._tells_cached &= isinstance(cached, int)
        self._prompt_tokens += answer.prompt_tokens
        self._cached_tokens += cached if isinstance(cached, int) else 0

    def _ask(self, question: Question) -> tuple[Answer, dict[str, Any]]:
        read = _read_text if question.max_tokens else functools.partial(_read_likelihoods, question)
        try:
            return post_json(
                self._client,
                f"{self._url}/{'chat/completions' if question.is_chat else 'completions'}",
                self._body(question),
                read,
                self._patience,
                check="check --endpoint, --model and the key.",
                hint="See that it runs and is not overloaded (--concurrency, --timeout, --retries), then run the same "
                "command again: with --out, what it has answered is kept.",
            )
        except RefusedError as refusal:
            raise UserError(
                f"{self._url} refuses a prompt of {len(question.prompt)} {'turns' if question.is_chat else 'tokens'}: "
                f"{refusal}. Give shorter --lengths, or an endpoint that takes it."
            ) from None

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": question.max_tokens or 1}
        if question.stop:
            body["stop"] = list(question.stop)
        if question.is_chat:
            return {**body, "messages": list(question.prompt)}
        if not question.max_tokens:
            return {**body, "prompt": list(question.prompt), "logprobs": 1, "echo": True}
        return {**body, "prompt": self._text(question)}

    def _text(self, question: Question) -> str:
        """The prompt without the token that begins a document, which endpoints put there themselves."""
        ids: list[int] = list(question.prompt)  # pyright: ignore[reportAssignmentType, reportArgumentType]
        return self._tokenizer.decode(ids[ids[0] == self._tokenizer.bos_id :])

    def _first_model(self) -> str:
        advice = "name it with --model, or check --endpoint."
        try:
            response = self._client.get(f"{self._url}/models")
            response.raise_for_status()
            name = response.json()["data"][0]["id"]
        except httpx.HTTPStatusError as error:
            raise UserError(f"{self._url}/models answers HTTP {error.response.status_code}; {advice}") from None
        except httpx.TransportError as error:
            raise UserError(f"{self._url} cannot be reached ({error or type(error).__name__}); {advice}") from None
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self._url}/models names no model; {advice}") from None
        return str(name)


def _headers(settings: EndpointSettings) -> dict[str, str]:
    if settings.api_key_env is None:
        return {}
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UserError(f"--api-key-env: the environment variable {settings.api_key_env} is not set.")
    return {"Authorization": f"Bearer {key}"}


def _usage(response: Any) -> tuple[int, dict[str, Any]]:
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = usage.get("prompt_tokens")
    return tokens if isinstance(tokens, int) else 0, usage


def _read_text(response: Any) -> tuple[Answer, dict[str, Any]] | None:
    choice = response["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    tokens, usage = _usage(response)
    return (Answer(text, tokens), usage) if isinstance(text, str) else None


def _read_likelihoods(question: Question, response: Any) -> tuple[Answer, dict[str, Any]] | None:
    """The log-probabilities that are asked for: not the first token's, nor that of the one that was generated."""
    told = response["choices"][0]["logprobs"]
    logprobs = told["token_logprobs"][1:-1]
    nats = -np.array(logprobs, np.float64)
    tops = told.get("top_logprobs")
    greedy = None
    if tops is not None:
        best = [max(top.values()) for top in tops[1:-1]]
        greedy = np.array([logprob >= top for logprob, top in zip(logprobs, best, strict=True)])
    if question.scored is not None:
        nats, greedy = nats[-question.scored :], None if greedy is None else greedy[-question.scored :]
    tokens, usage = _usage(response)
    return (Answer("", tokens, nats, greedy), usage) if math.isfinite(nats.sum()) else None
