"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, whatever went wrong, and where."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.serve.request import QueueFullError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "service_unavailable"}
_RETRY_SECONDS = 1
_SHOWN_CHARACTERS = 200


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

    def response(self) -> JSONResponse:
        """As an HTTP response."""
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers)

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """What the client is told of ``error``: a defect of the server is logged, and told without its details."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, UserError):
            return cls(400, str(error))
        if isinstance(error, QueueFullError):
            return cls(429, str(error), code="queue_full", headers={"Retry-After": str(_RETRY_SECONDS)})
        logger(__name__).error("a request met a defect of the server", exc_info=error)
        return cls(500, "The server made a mistake; its log has the details.", code="internal_error")


def unavailable(reason: str) -> ApiError:
    """The server takes no requests now."""
    return ApiError(503, reason, code="unavailable", headers={"Retry-After": str(_RETRY_SECONDS)})


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of ``app`` have OpenAI's shape, FastAPI's and Starlette's own among them."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return ApiError.of(error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return explain(error.errors()).response()

    async def from_framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _framework_error(request, error).response()

    for kind in (ApiError, UserError, QueueFullError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, from_framework)


def explain(problems: Sequence[Any]) -> ApiError:
    """One sentence per problem that pydantic found, each naming the field and what it was given."""
    fields = [".".join(map(str, problem["loc"][1:])) for problem in problems]
    sentences = dict.fromkeys(_sentence(field, problem) for field, problem in zip(fields, problems, strict=True))
    unsupported = problems[0]["type"] in ("extra_forbidden", "none_required")
    code = "unsupported_parameter" if unsupported else "invalid_value"
    return ApiError(400, " ".join(sentences), param=fields[0] or None, code=code)


def _sentence(field: str, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"'{field}' is not a field of this request; leave it out."
    if problem["type"] == "none_required":
        return f"'{field}' is not supported by this server; leave it out."
    if problem["type"] == "missing":
        return f"'{field}' is required." if field else "The request has no body; send a JSON object."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    given = repr(problem.get("input"))
    if isinstance(problem.get("input"), dict | list) or len(given) > _SHOWN_CHARACTERS:
        given = ""
    subject = f"'{field}'" if field else "The body"
    return f"{subject}: {message}{f' (given: {given})' if given else ''}."


def _framework_error(request: Request, error: HTTPException) -> ApiError:
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"{where[:_SHOWN_CHARACTERS]} is not served here; see /openapi.json.", code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{where[:_SHOWN_CHARACTERS]} is not served; use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers=error.headers)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)
