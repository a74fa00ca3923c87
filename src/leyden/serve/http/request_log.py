"""A line in the log for each request that has ended: what was asked for and what it cost, never what was said."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leyden.core.log import logger
from leyden.serve.http.generation import Generation

_POLLED = ("/health", "/ready", "/metrics")
_SHOWN_CHARACTERS = 200


class RequestLog:
    """ASGI middleware that logs every request at its end, but for those by which others watch the server.

    The line has the method, the path and the status, and of completions (which a route leaves as ``generation`` in the
    request's state) the response's id, tokens, times and why they ended; ``closed``: before they did.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log it."""
        if scope["type"] != "http" or scope["path"] in _POLLED:
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        state = scope.setdefault("state", {})

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # As it was sent, with percent signs: nothing in it ends a line.
            path = scope["raw_path"].decode("ascii", "backslashreplace")[:_SHOWN_CHARACTERS]
            facts = [scope["method"], path, str(status)]
            if (generation := state.get("generation")) is not None:
                facts += _cost(generation, began)
            logger(__name__).info("%s total=%.3fs", " ".join(facts), time.perf_counter() - began)


def _cost(generation: Generation, began: float) -> list[str]:
    usage = generation.usage()
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    first = [] if generation.first is None else [f"first={generation.first - began:.3f}s"]
    ends = ",".join(dict.fromkeys(generation.ends)) or "closed"
    tokens = [f"prompt={usage.prompt_tokens}", f"cached={cached}", f"output={usage.completion_tokens}"]
    return [generation.name, f"end={ends}", *tokens, *first]
