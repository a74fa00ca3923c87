"""Bodies of requests: bounded while they arrive, and strict JSON before anything is made of them."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from leyden.serve.http.errors import ApiError


class JsonRequest(Request):
    """A request whose body is JSON of bounded size.

    The parser is pydantic's: it takes 200 levels of lists and tables inside each other, text that is UTF-8, and neither
    lone surrogates nor ``NaN``.
    """

    async def body(self) -> bytes:
        """The body.

        Raises:
            ApiError: 413 as soon as more than the server's limit arrived or was announced, 415 for another type.
        """
        if not hasattr(self, "_body"):
            self._check_type()
            limit: int = self.app.state.settings.max_body_bytes
            announced = self.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > limit:
                raise _too_large(limit)
            pieces, size = [], 0
            async for piece in self.stream():
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                pieces.append(piece)
            self._body = b"".join(pieces)
        return self._body

    async def json(self) -> Any:
        """The body as Python's lists, tables, strings and numbers.

        Raises:
            ApiError: as :meth:`body`; 400 for what is not JSON.
        """
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"The body is not JSON that can be read: {error}.", code="invalid_json") from None

    def _check_type(self) -> None:
        given = self.headers.get("content-type", "")
        if given.partition(";")[0].strip().lower() != "application/json":
            message = (
                f"The body must be application/json (given: {given[:100] or 'no type'}); set the header Content-Type."
            )
            raise ApiError(415, message, code="unsupported_media_type")


class JsonRoute(APIRoute):
    """A route that reads its body as :class:`JsonRequest` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given the stricter request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return strict


def _too_large(limit: int) -> ApiError:
    message = (
        f"The body is larger than {limit} bytes, which is this server's limit (--max-body-bytes); send less at once."
    )
    return ApiError(413, message, code="body_too_large")
