"""What the OpenAPI document says of every route's responses."""

from typing import Any

from pydantic import BaseModel

from leyden.serve.http.errors import ErrorResponse

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
