"""Who may ask: whoever has a key, or, without keys, whoever is on this machine."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from leyden.serve.http.errors import ApiError
from leyden.serve.http.settings import is_loopback

OPEN_PATHS = frozenset(("/", "/health", "/ready", "/openapi.json"))
"""Need no key."""


class Keys:
    """ASGI middleware that lets requests with a key through.

    Without keys the server listens on loopback alone; requests must then name it by a loopback name, too, so that a
    page in a browser cannot reach it by a domain of its own that resolves to this machine (DNS rebinding).

    Args:
        app: what is guarded.
        keys: any of them opens it.
        open_paths: need no key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: frozenset[str] = OPEN_PATHS) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 401 (or 403, of a foreign host)."""
        if scope["type"] == "http" and (error := self._refuse(scope)) is not None:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._digests:
            return None if is_loopback(_host_name(headers.get("host", ""))) else _foreign(headers.get("host", ""))
        if scope["path"] in self._open_paths or self._known(headers.get("authorization", "")):
            return None
        message = "This server needs an API key; send it as 'Authorization: Bearer KEY'."
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _known(self, authorization: str) -> bool:
        """Whether it holds one of the keys; takes the same time whichever, and however much of one it holds."""
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches) and scheme.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host_name(host: str) -> str:
    """``host`` without its port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _foreign(host: str) -> ApiError:
    message = (
        f"Without API keys this server answers to localhost alone, not to {host[:100]!r}; start it with --api-key."
    )
    return ApiError(403, message, code="foreign_host")
