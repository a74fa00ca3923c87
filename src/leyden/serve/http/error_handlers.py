"""Whatever goes wrong with a request becomes its answer."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leyden.core.errors import UserError
from leyden.serve.http.errors import ApiError, unavailable
from leyden.serve.request import QueueFullError

_SHOWN_CHARACTERS = 200


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
