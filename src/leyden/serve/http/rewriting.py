"""Middleware that rewrites requests: HEAD is answered as GET, and a proxy's path prefix is removed."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Heads:
    """ASGI middleware: where GET is answered, HEAD is, without the body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


class UnderPath:
    """ASGI middleware that tells the application under which path a proxy shows it.

    Args:
        app: whose routes know nothing of that path.
        root_path: such as ``/llm``; requests may have it in front of theirs or not, as proxies have both ways.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the path in front."""
        if scope["type"] == "http":
            path = scope["path"]
            whole = path if path.startswith(f"{self._root}/") else self._root + path
            scope = {**scope, "root_path": self._root, "path": whole}
        await self._app(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path of a request, without the one under which a proxy shows the server."""
    return scope["path"].removeprefix(scope.get("root_path", ""))
