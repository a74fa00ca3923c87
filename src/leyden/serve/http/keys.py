"""Authentication and origin checks: API keys, or, without keys, this machine alone."""

import hashlib
import hmac
import re

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from leyden.serve.http.errors import ApiError
from leyden.serve.http.rewriting import path_of
from leyden.serve.http.settings import ServerSettings, is_loopback

_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]+)(?::[0-9]{1,5})?")
"""A name or an address, and the port."""
OPEN_PATHS = frozenset(("/", "/health", "/ready", "/openapi.json"))
"""Need no key."""


class Keys:
    """ASGI middleware that lets requests with a key through, and notes whose they are as ``owner`` in their state.

    Without keys the server listens on loopback alone; requests must then name it by a loopback name, too, so that a
    page in a browser cannot reach it by a domain of its own that resolves to this machine (DNS rebinding). And a page
    of another origin, which a browser names, is refused unless the origin is allowed. Through a Unix socket no browser
    comes by itself, and a proxy may call the server as it likes.

    Args:
        app: what is guarded.
        settings: the keys, and the origins.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in settings.api_keys]
        self._origins = frozenset(settings.allow_origins)
        self._any_host = settings.uds is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 401 (or 403, of a foreign host)."""
        if scope["type"] == "http" and (error := self._refuse(scope)) is not None:
            await error.answer(Request(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._digests:
            return self._refuse_stranger(headers.get("host", ""), headers.get("origin"))
        owner = self._owner(headers.get("authorization", ""))
        if owner is not None:
            Request(scope).state.owner = owner
        if owner is not None or path_of(scope) in OPEN_PATHS:
            return None
        message = "This server needs an API key; send it as 'Authorization: Bearer KEY'."
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _refuse_stranger(self, host: str, origin: str | None) -> ApiError | None:
        named = _HOST.fullmatch(host)
        if not self._any_host and not (named and is_loopback(named[1])):
            return _foreign(host)
        if origin is None or origin in self._origins or origin.partition("://")[2].lower() == host.lower():
            return None
        message = (
            f"Without API keys this server answers to its own page and to programs, not to pages of {origin[:100]!r}; "
            "allow the origin with --allow-origin, or start it with --api-key."
        )
        return ApiError(403, message, code="foreign_origin")

    def _owner(self, authorization: str) -> str | None:
        """What stands for the key it holds, in 16 characters; in the same time whichever, and however much of one."""
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:16] if any(matches) and scheme.lower() == "bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _foreign(host: str) -> ApiError:
    message = (
        f"Without API keys this server answers to localhost alone, not to {host[:100]!r}; start it with --api-key."
    )
    return ApiError(403, message, code="foreign_host")
