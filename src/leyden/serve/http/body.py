"""Bodies of requests: bounded while they arrive, alone and together, and read and checked in a thread.

Nothing here that grows with a body is done in the event loop, where it would hold up everybody. What must be done in
one go, the reading of JSON, is bounded first: by the bytes, and by the strings, lists and tables in them.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from leyden.serve.http.errors import ApiError, Path, busy, explain, ignorable
from leyden.serve.http.service import Service

T = TypeVar("T")

SMALL_BYTES = 1 << 16
"""A body of up to this always has room, and waits behind none that is larger."""
_MAX_TABLES = 50_000
_MAX_TEXTS = 150_000
_MAX_FIELDS = 4096
_TABLES_AND_TEXTS = re.compile(rb'[\[{]|"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)


class JsonRoute(APIRoute):
    """A route whose function takes the ``body``, checked, and the ``request``, and returns the response.

    What FastAPI would do with the body in the event loop is done in a thread. Routes without a body are FastAPI's own.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        endpoint = self.endpoint
        if self.body_field is None:
            return super().get_route_handler()
        adapter: TypeAdapter[Any] = TypeAdapter(get_type_hints(endpoint, include_extras=True)["body"])

        async def handle(request: Request) -> Response:
            service: Service = request.app.state.service
            check_type(request)
            with service.budget.share() as share:
                data = await read(request, service.max_body_bytes, share.take)
                request.state.threads = threads = service.threads if len(data) <= SMALL_BYTES else service.bulk
                body = await threads.run(parse, adapter, data, service.ignore)
                del data
                return await endpoint(body=body, request=request)

        return handle


def check_type(request: Request) -> None:
    """Raise an ApiError (415) unless the request says that it sends JSON, as no form in a browser can."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        message = f"The body must be application/json (given: {given[:100] or 'no type'}); set the header Content-Type."
        raise ApiError(415, message, code="unsupported_media_type")


async def read(request: Request, limit: int, take: Callable[[int], bool]) -> bytes:
    """The body of ``request``.

    Args:
        request: whose body nobody has read.
        limit: in bytes.
        take: asks for room for as many bytes as there are so far.

    Raises:
        ApiError: 413 as soon as more than ``limit`` arrived or was announced, 503 where there is no room now.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    data = bytearray()
    try:
        async for piece in request.stream():
            data += piece
            if len(data) > limit:
                raise _too_large(limit)
            if len(data) > SMALL_BYTES and not take(len(data)):
                raise busy("Requests with large bodies fill the memory that this server has for them; try again.")
    except ClientDisconnect:
        raise ApiError(400, "The client went before its request was there.", code="client_gone") from None
    return bytes(data)


def parse(adapter: TypeAdapter[T], data: bytes, ignore: Callable[[str], None] | None = None) -> T:
    """The request that a body asks for.

    The parser is pydantic's: it takes 200 levels of lists and tables inside each other, text that is UTF-8, and neither
    lone surrogates nor ``NaN``.

    Args:
        adapter: of the type of the request.
        data: the body.
        ignore: is told of fields that are unknown or not supported, which are left out then; None: they are refused.

    Raises:
        ApiError: 400, what is wrong.
    """
    if len(data) > SMALL_BYTES:
        _check_structure(data)
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        if not data:
            raise ApiError(400, "The request has no body; send a JSON object.", code="invalid_json") from None
        raise ApiError(400, f"The body is not JSON that can be read: {error}.", code="invalid_json") from None
    if len(data) > SMALL_BYTES:
        _check_fields(value)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    if ignore is None or not (unknown := ignorable(problems, value)):
        raise explain(problems, value)
    for path in unknown:
        ignore(_leave_out(value, path))
    try:
        return adapter.validate_python(value, extra="ignore")
    except ValidationError as error:
        raise explain(error.errors(include_url=False, include_context=False), value) from None


def _check_structure(data: bytes) -> None:
    """Refuse what would take the parser long in one go: the other threads wait for it."""
    tables = texts = 0
    for match in _TABLES_AND_TEXTS.finditer(data):
        if data[match.start()] == 0x22:
            texts += 1
        else:
            tables += 1
        if tables > _MAX_TABLES or texts > _MAX_TEXTS:
            message = (
                f"The body has more than {_MAX_TABLES} lists and objects, or more than {_MAX_TEXTS} strings; send "
                "fewer at once."
            )
            raise ApiError(400, message, code="invalid_value")


def _check_fields(value: Any) -> None:
    """Refuse an object of thousands of fields, each of which could be one more problem to tell."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            if len(here) > _MAX_FIELDS:
                message = f"The body has an object of {len(here)} fields; {_MAX_FIELDS} are allowed."
                raise ApiError(400, message, code="invalid_value")
            here = list(here.values())
        waiting += [each for each in here if isinstance(each, dict | list)]


def _leave_out(value: Any, path: Path) -> str:
    """Take the field at ``path`` out of a JSON value; its name."""
    *above, last = path
    for step in above:
        value = value[step]
    value.pop(last, None)
    return ".".join(str(step)[:100] for step in path if isinstance(step, str))


def _too_large(limit: int) -> ApiError:
    message = (
        f"The body is larger than {limit} bytes, which is this server's limit (--max-body-bytes); send less at once."
    )
    return ApiError(413, message, code="body_too_large")
