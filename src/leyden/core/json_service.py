"""A client for JSON services over HTTP that retries while they fail for a moment."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from leyden.core.errors import UserError

T = TypeVar("T")
Item = TypeVar("Item")

_REFUSED = {400, 413, 422}
"""Statuses that say that this request cannot be answered; others may be."""
_PASSING = {408, 409, 425, 429}
"""Statuses, beside 5xx, after which the same request may succeed."""
_LONGEST_WAIT_SECONDS = 60.0


class RefusedError(Exception):
    """The service cannot take this request, and asking again would not help; the message is what it said."""


@dataclass(frozen=True)
class Patience:
    """How long and how often a service is asked.

    Attributes:
        timeout_seconds: for one answer, between two of its bytes.
        retries: how often a request that failed is sent again.
        backoff_seconds: the wait before the first of these; it doubles each time, up to a minute.
        stop: when it is set, nothing is sent again.
    """

    timeout_seconds: float
    retries: int
    backoff_seconds: float
    stop: threading.Event


def post_json(
    client: httpx.Client,
    url: str,
    body: Mapping[str, Any],
    read: Callable[[Any], T | None],
    patience: Patience,
    *,
    check: str,
    hint: str,
) -> T:
    """Send ``body`` to ``url`` until the answer is one that ``read`` understands.

    Args:
        client: with headers and time-outs.
        url: where the request goes.
        body: the JSON object that is sent.
        read: takes the JSON of an answer; None where it has not the form that is expected.
        patience: how often it is tried.
        check: what the user should check where the service refuses everything (a wrong key, say).
        hint: what the user should do where it still fails after all tries.

    Returns:
        What ``read`` made of the answer.

    Raises:
        RefusedError: the service refuses this request.
        UserError: it refuses everything, cannot be reached, or still fails after all tries.
    """
    failure, tries = "", 0
    while True:
        tries += 1
        wait = min(patience.backoff_seconds * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS)
        try:
            response = client.post(url, json=body)
        except httpx.TransportError as error:
            failure = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
        else:
            if response.status_code in _REFUSED:
                raise RefusedError(_told(response))
            if response.status_code == 200:
                answer = _read(response, read)
                if answer is not None:
                    return answer
                failure = f"an answer that is not of the expected form: {response.text[:200]!r}"
            elif response.status_code in _PASSING or response.status_code >= 500:
                failure = _told(response)
                wait = _asked_wait(response, wait)
            else:
                raise UserError(f"{url}: {_told(response)}; {check}")
        if tries > patience.retries or patience.stop.wait(wait):
            times = "once" if tries == 1 else f"{tries} times, the last time"
            raise UserError(f"{url} failed {times} with {failure}. {hint}")


def in_parallel(
    ask: Callable[[Item], T], items: Sequence[Item], concurrency: int, stop: threading.Event
) -> Generator[tuple[int, T], None, None]:
    """Ask for every item, several at a time; each item's index and answer, as they come.

    After an error, or when nobody listens any more, nothing that has not begun is asked, and nothing is sent again.

    Args:
        ask: sends one request, and minds ``stop`` as :func:`post_json` does.
        items: what is asked for.
        concurrency: requests at a time.
        stop: is cleared at the beginning, and set at the end.

    Raises:
        Exception: the first that ``ask`` raises.
    """

    def unless_stopped(item: Item) -> T:
        if stop.is_set():
            raise CancelledError
        return ask(item)

    stop.clear()
    pool = ThreadPoolExecutor(concurrency)
    try:
        asked = {pool.submit(unless_stopped, item): index for index, item in enumerate(items)}
        for future in as_completed(asked):
            yield asked[future], future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _read(response: httpx.Response, read: Callable[[Any], T | None]) -> T | None:
    try:
        return read(response.json())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _told(response: httpx.Response) -> str:
    """Status, and what the service says of it."""
    return f"HTTP {response.status_code} {response.text[:200].strip()!r}"


def _asked_wait(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the service asks to wait."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_WAIT_SECONDS)
    except (KeyError, ValueError):  # absent, or a date
        return otherwise
