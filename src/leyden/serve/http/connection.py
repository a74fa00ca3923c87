"""One client's connection: uvicorn's, with time limits for clients that send or take nothing, and errors as JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from leyden.serve.http.errors import ApiError
from leyden.serve.http.settings import ServerSettings


class Connection(H11Protocol):
    """HTTP/1.1 to one client. Use a subclass made by :func:`connections`, which knows the settings.

    A request must arrive whole within ``request_seconds``. The clock starts with the connection, or with the first byte
    of a further request; between requests, uvicorn closes an idle connection by itself.
    """

    settings: ServerSettings

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportArgumentType]
        self._arriving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.abort()
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        for timer in (self._arriving, self._stalled):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on; the clock stops when the request is there."""
        if self._arriving is None and self.conn.their_state is h11.IDLE:
            self._expect_request()
        super().data_received(data)
        if self._arriving is not None and self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._arriving.cancel()
            self._arriving = None

    def pause_writing(self) -> None:
        """The client does not take what is sent: from now on it has ``stall_seconds``."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.settings.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It took enough."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets the error of every other wrong request."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the answer to an earlier request is under way
            self.transport.abort()
            return
        body = json.dumps(ApiError(400, msg, code="invalid_http").body.model_dump()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_request(self) -> None:
        self._arriving = self.loop.call_later(self.settings.request_seconds, self._too_late)

    def _too_late(self) -> None:
        self._arriving = None
        if not self.transport.is_closing():
            self.transport.abort()


def connections(settings: ServerSettings) -> type[Connection]:
    """The class of connections with these settings, which uvicorn makes one of for each client."""
    return type("ServedConnection", (Connection,), {"settings": settings})
