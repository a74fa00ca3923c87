"""Errors in OpenAI's shape, ``{"error": {"message", "type", "param", "code"}}``.

The words for what is wrong with a request, how each kind of error is answered, and how OpenAPI describes it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.serve.request import QueueFullError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "service_unavailable"}
_RETRY_SECONDS = 1


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A request that gets an error for an answer; FastAPI lets this kind of exception through wherever it is raised.

    Args:
        status: of the response.
        message: what was given, what is allowed, what to do.
        param: the field that is at fault.
        code: a word that programs can tell errors apart by.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        kind = _TYPES.get(status, "invalid_request_error")
        self.body = ErrorResponse(error=ErrorDetail(message=message, type=kind, param=param, code=code))

    def answer(self, request: Request) -> JSONResponse:
        """As the response of ``request``, whose line in the log tells the reason, too."""
        request.state.error = self.body.error
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers)

    @classmethod
    def of(cls, error: BaseException) -> "ApiError":
        """What the client is told of ``error``: a defect of the server is logged, and told without its details."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, UserError):
            return cls(400, str(error))
        if isinstance(error, QueueFullError):
            return cls(429, str(error), code="queue_full", headers={"Retry-After": str(_RETRY_SECONDS)})
        logger(__name__).error("a request met a defect of the server", exc_info=error)
        return cls(500, "The server made a mistake; its log has the details.", code="internal_error")


def busy(reason: str) -> ApiError:
    """There is no room for this request at the moment."""
    return ApiError(503, reason, code="busy", headers={"Retry-After": str(_RETRY_SECONDS)})


def unavailable(reason: str) -> ApiError:
    """The server takes no requests now."""
    return ApiError(503, reason, code="unavailable", headers={"Retry-After": str(_RETRY_SECONDS)})


_SHOWN_PROBLEMS = 8
_SHOWN_CHARACTERS = 200
_UNSUPPORTED = ("extra_forbidden", "none_required")

Path = tuple[str | int, ...]
"""Keys and places of lists, from the body to the field."""


def explain(problems: Sequence[ErrorDetails], body: Any) -> ApiError:
    """One sentence for each of the first fields that pydantic found wrong, and how many more there are.

    Args:
        problems: all of them.
        body: the JSON value that they were found in.
    """
    grouped: dict[Path, list[ErrorDetails]] = {}
    for problem in problems:
        grouped.setdefault(path_of(problem, body), []).append(problem)
    told = _telling(grouped)
    sentences = [_sentence(path, grouped[path]) for path in told[:_SHOWN_PROBLEMS]]
    if len(told) > _SHOWN_PROBLEMS:
        sentences.append(f"And {len(told) - _SHOWN_PROBLEMS} more.")
    unsupported = grouped[told[0]][0]["type"] in _UNSUPPORTED
    code = "unsupported_parameter" if unsupported else "invalid_value"
    return ApiError(400, " ".join(sentences), param=_shown(told[0]) or None, code=code)


def ignorable(problems: Sequence[ErrorDetails], body: Any) -> list[Path]:
    """The fields among ``problems`` that are unknown or not supported, and can be taken out of ``body``."""
    return [path_of(problem, body) for problem in problems if problem["type"] in _UNSUPPORTED]


def path_of(problem: ErrorDetails, body: Any) -> Path:
    """Where in ``body`` the problem is. What pydantic says besides is which kinds of value it tried there."""
    path: list[str | int] = []
    value: Any = body
    for step in problem["loc"]:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            value = value[step]  # pyright: ignore[reportCallIssue, reportArgumentType] - a place of a list, a key else
            path.append(step)
    if problem["type"] == "missing":
        path.append(problem["loc"][-1])
    return tuple(path)


def _telling(grouped: Mapping[Path, Sequence[ErrorDetails]]) -> list[Path]:
    """Of the fields those that say most: not a whole where a part of it is named, nor what follows from a wrong type.

    Of a value that may be several things, pydantic tells what keeps it from being each of them.
    """
    wholes = {path[:depth] for path in grouped for depth in range(len(path))}
    mistyped = {
        path[:-1] for path, found in grouped.items() if path and path[-1] in ("type", "role") and _is_kind(found)
    }
    return [path for path in grouped if path not in wholes and (path[:-1] not in mistyped or _is_kind(grouped[path]))]


def _is_kind(problems: Sequence[ErrorDetails]) -> bool:
    return problems[0]["type"] in ("literal_error", "union_tag_invalid")


def _sentence(path: Path, problems: Sequence[ErrorDetails]) -> str:
    field, kind = _shown(path), problems[0]["type"]
    if kind == "extra_forbidden":
        return f"'{field}' is not a field of this request; leave it out."
    if kind == "none_required":
        return f"'{field}' is not supported by this server with this value; leave it out."
    if kind == "missing":
        return f"'{field}' is required."
    rules = dict.fromkeys(problem["msg"].removeprefix("Value error, ").rstrip(".") for problem in problems)
    given = _given(problems[0].get("input"))
    subject = f"'{field}'" if field else "The body"
    return f"{subject}: {', or '.join(rules)[: 2 * _SHOWN_CHARACTERS]}{f' (given: {given})' if given else ''}."


def _given(value: Any) -> str:
    """How a value that is no list or table was given; nothing, where that would be long."""
    if isinstance(value, dict | list) or (isinstance(value, str) and len(value) > _SHOWN_CHARACTERS):
        return ""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else ""


def _shown(path: Path) -> str:
    text = ".".join(str(step)[:_SHOWN_CHARACTERS] for step in path)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def add_error_handlers(app: FastAPI) -> None:
    """Let the errors that routes raise have OpenAI's shape, FastAPI's and Starlette's own among them."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return ApiError.of(error).answer(request)

    async def from_framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _framework_error(request, error).answer(request)

    for kind in (ApiError, UserError, QueueFullError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, from_framework)


class Answered:
    """ASGI middleware: an exception of any type, a library's panic too, is the answer of the request that met it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer it if nobody else does."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            error = unavailable("The server is shutting down and ended this request.")
        except BaseException as fault:
            error = ApiError.of(fault)
        else:
            return
        if not begun:  # a response that has begun is cut off by its connection
            await error.answer(Request(scope))(scope, receive, send)


def _framework_error(request: Request, error: HTTPException) -> ApiError:
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"{where[:_SHOWN_CHARACTERS]} is not served here; see /openapi.json.", code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{where[:_SHOWN_CHARACTERS]} is not served; use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers=error.headers)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)


_ERRORS = {
    400: "A field is missing, unknown, unsupported or out of range, the prompt is longer than the context, or the body "
    "is not JSON.",
    401: "The API key is missing or unknown.",
    403: "Without API keys, the server was asked by another name than localhost.",
    404: "No such model.",
    413: "The body is too large.",
    415: "The body is not `application/json`.",
    429: "The queue is full; try again after `Retry-After` seconds.",
    500: "The engine could not go on with this request.",
    503: "The engine has stopped, the server is starting or shutting down, or large bodies fill its memory.",
}
_STREAM = {"schema": {"type": "string", "description": "With `stream`: chunks of the same shape, and `[DONE]`."}}


def responses(
    model: type[BaseModel], *, stream: bool = False, errors: tuple[int, ...] = tuple(_ERRORS)
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: ``model`` with 200, and OpenAI's error shape with these statuses.

    Args:
        model: of the success.
        stream: whether it may come as server-sent events.
        errors: statuses the route can have.
    """
    success: dict[str, Any] = {"model": model, "description": "Done."}
    if stream:
        success["content"] = {"text/event-stream": _STREAM}
    return {200: success, **failures(errors)}


def failures(errors: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    """Responses in OpenAI's error shape, with these statuses and any other."""
    described = {status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in errors}
    return {**described, "default": {"model": ErrorResponse, "description": "Any other error."}}
