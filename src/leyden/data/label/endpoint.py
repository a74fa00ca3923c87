"""A language model behind an OpenAI-compatible endpoint (``POST .../chat/completions``)."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from leyden.core.errors import UserError
from leyden.core.json_service import Patience, RefusedError, in_parallel, post_json
from leyden.data.label.language_model import ModelRequest, ModelSettings, Reply


class Endpoint:
    """Asks an endpoint, several requests at a time.

    Raises:
        UserError: the environment variable that should hold the key is not set.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._url = f"{settings.url.rstrip('/')}/chat/completions"
        headers = {}
        if settings.api_key_env:
            key = os.environ.get(settings.api_key_env)
            if not key:
                raise UserError(f"model.api_key_env: the environment variable {settings.api_key_env} is not set.")
            headers["Authorization"] = f"Bearer {key}"
        self._headers = headers

    @property
    def identity(self) -> str:
        """Address and name."""
        return f"{self._settings.url.rstrip('/')} {self._settings.name}"

    def complete(self, requests: Sequence[ModelRequest]) -> Iterator[tuple[int, Reply]]:
        """Each request's index and answer, as they come in.

        Raises:
            UserError: the endpoint cannot be reached, refuses the key, has no such model, or still fails after all
                retries. Answers that came before have been yielded.
        """
        if not requests:
            return
        settings, stop = self._settings, threading.Event()
        patience = Patience(settings.timeout_seconds, settings.retries, settings.backoff_seconds, stop)
        limits = httpx.Limits(max_connections=settings.concurrency)
        with httpx.Client(headers=self._headers, timeout=settings.timeout_seconds, limits=limits) as client:
            yield from in_parallel(
                lambda request: self._ask(client, request, patience), requests, settings.concurrency, stop
            )

    def _ask(self, client: httpx.Client, request: ModelRequest, patience: Patience) -> Reply:
        """One answer, after as many retries as are allowed."""
        body = {
            "model": self._settings.name,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        try:
            return post_json(
                client,
                self._url,
                body,
                _reply,
                patience,
                check="check model.url, model.name and the key.",
                hint="See that it runs and is not overloaded (model.concurrency, model.timeout_seconds, "
                "model.retries), then run the same command again: what it has answered is kept.",
            )
        except RefusedError as refusal:
            return Reply(str(refusal), "refused")


def _reply(answer: Any) -> Reply | None:
    """The reply in the JSON of an answer; None where it has not the form of one."""
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        return None
    return Reply(text, "length" if choice.get("finish_reason") == "length" else "stop")
