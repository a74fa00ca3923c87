"""A language model behind an OpenAI-compatible endpoint (``POST .../chat/completions``)."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from leyden.core.errors import UserError
from leyden.data.label.language_model import ModelRequest, ModelSettings, Reply

_REFUSED = {400, 413, 422}
"""Statuses that say that this request cannot be answered; others may be."""
_PASSING = {408, 409, 425, 429}
"""Statuses, beside 5xx, after which the same request may succeed."""
_LONGEST_WAIT_SECONDS = 60.0


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
        stop = threading.Event()
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        with httpx.Client(headers=self._headers, timeout=self._settings.timeout_seconds, limits=limits) as client:
            pool = ThreadPoolExecutor(self._settings.concurrency)
            try:
                asked = {pool.submit(self._ask, client, request, stop): i for i, request in enumerate(requests)}
                for future in as_completed(asked):
                    yield asked[future], future.result()
            finally:  # after an error, or when nobody listens any more: nothing that has not begun is asked
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _ask(self, client: httpx.Client, request: ModelRequest, stop: threading.Event) -> Reply:
        """One answer, after as many retries as are allowed."""
        body = {
            "model": self._settings.name,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        for attempt in range(self._settings.retries + 1):
            wait = min(self._settings.backoff_seconds * 2**attempt, _LONGEST_WAIT_SECONDS)
            try:
                response = client.post(self._url, json=body)
            except httpx.TransportError as error:
                failure = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
            else:
                if response.status_code in _REFUSED:
                    return Reply(_told(response), "refused")
                if response.status_code == 200:
                    answer = _answer(response)
                    if answer is not None:
                        return answer
                    failure = f"an answer that is not of the expected form: {response.text[:200]!r}"
                elif response.status_code in _PASSING or response.status_code >= 500:
                    failure = _told(response)
                    wait = _asked_wait(response, wait)
                else:
                    raise UserError(f"{self._url}: {_told(response)}; check model.url, model.name and the key.")
            if attempt < self._settings.retries and stop.wait(wait):
                break
        raise UserError(
            f"{self._url} failed {self._settings.retries + 1} times, the last time with {failure}. See that it runs "  # pyright: ignore[reportPossiblyUnboundVariable]
            "and is not overloaded (model.concurrency, model.timeout_seconds, model.retries), then run the same "
            "command again: what it has answered is kept."
        )


def _answer(response: httpx.Response) -> Reply | None:
    """The answer in a response; None where it has not the form of one."""
    try:
        choice: Any = response.json()["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    if not isinstance(text, str):
        return None
    return Reply(text, "length" if choice.get("finish_reason") == "length" else "stop")


def _told(response: httpx.Response) -> str:
    """Status, and what the endpoint says of it."""
    return f"HTTP {response.status_code} {response.text[:200].strip()!r}"


def _asked_wait(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the endpoint asks to wait."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_WAIT_SECONDS)
    except (KeyError, ValueError):  # absent, or a date
        return otherwise
