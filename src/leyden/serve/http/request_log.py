"""The log of a server: a line for each request that has ended, as text for people or as JSON.

A line says what was asked for and what it cost, never what was said.
"""

import json
import logging
import re
import sys
import time
import uuid
from datetime import datetime
from typing import Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leyden.core.log import logger
from leyden.serve.http.errors import ErrorDetail
from leyden.serve.http.generation import PromptGeneration
from leyden.serve.http.rewriting import path_of

_POLLED = ("/health", "/ready", "/metrics")
_SHOWN_CHARACTERS = 200
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

Facts = dict[str, str | int | float]
"""What is told of a request, by names that a program may look for."""


class RequestLog:
    """ASGI middleware that gives every request an id, and logs it at its end; but for those that watch the server.

    The id is that of the header ``X-Request-Id``, if a client or a proxy sent one; the response has it, too. The line
    has the client's address, the method, the path and the status, of an error its code and the field at fault, and of
    completions (which a route leaves as ``generation`` in the request's state) the response's id, tokens, times and why
    they ended; ``closed``: before they did.

    Args:
        app: what answers.
        logs: whether there are lines at all.
    """

    def __init__(self, app: ASGIApp, *, logs: bool) -> None:
        self._app, self._logs = app, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        state = scope.setdefault("state", {})
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = name
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if self._logs and path_of(scope) not in _POLLED:
                facts = _facts(scope, status) | _cost(state, began)
                facts |= {"total": round(time.perf_counter() - began, 3), "id": name}
                logger(__name__).info("%s", _line(facts), extra={"facts": facts})


def _facts(scope: Scope, status: int) -> Facts:
    # The path as it was sent, with percent signs: nothing in it ends a line.
    path = scope["raw_path"].decode("ascii", "backslashreplace")[:_SHOWN_CHARACTERS]
    client = scope.get("client")
    return {"client": client[0] if client else "-", "method": scope["method"], "path": path, "status": status}


def _cost(state: dict[str, Any], began: float) -> Facts:
    facts: Facts = {}
    generation: PromptGeneration | None = state.get("generation")
    if generation is not None:
        usage = generation.usage()
        details = usage.prompt_tokens_details
        facts = {"response": generation.name, "end": ",".join(dict.fromkeys(generation.ends)) or "closed"}
        facts |= {"prompt": usage.prompt_tokens, "cached": details.cached_tokens if details else 0}
        facts["output"] = usage.completion_tokens
        if generation.first is not None:
            facts["first"] = round(generation.first - began, 3)
    error: ErrorDetail | None = state.get("error")
    if error is not None:
        facts |= {name: value for name, value in (("code", error.code), ("param", error.param)) if value is not None}
    return facts


def _line(facts: Facts) -> str:
    """The first four by themselves, as in every log of a web server; the others with their names."""
    words = [str(facts[name]) for name in ("client", "method", "path", "status")]
    for name, value in list(facts.items())[len(words) :]:
        shown = f"{value:.3f}s" if isinstance(value, float) else str(value)
        words.append(f"{name}={shown if shown.isprintable() and ' ' not in shown else repr(shown)}")
    return " ".join(words)


LogFormat = Literal["text", "json"]


def log_as(form: LogFormat) -> None:
    """Let all that is logged from now on have this form, on standard error.

    As text it has the time in front (ISO 8601), unless standard error is a terminal.
    """
    root = logging.getLogger()
    if form == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        root.handlers = [handler]
    elif not sys.stderr.isatty():
        for handler in root.handlers:
            handler.setFormatter(TimedLines())


class TimedLines(logging.Formatter):
    """The message behind the time."""

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as text."""
        return f"{_time(record)} {super().format(record)}"


class JsonLines(logging.Formatter):
    """An object a line: ``time``, ``level``, ``logger`` and ``message``, and the facts that a record has besides."""

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as JSON."""
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **getattr(record, "facts", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
