"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, whatever went wrong, and where."""

from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

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
