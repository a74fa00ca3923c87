"""One client's connection: uvicorn's, with limits for clients that send or take nothing, and errors as JSON."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from leyden.serve.http.errors import ApiError
from leyden.serve.http.settings import ServerSettings

_SLICE_BYTES = 1 << 14
"""So much is parsed at a time; h11 bounds an incomplete head, and what comes in one piece is never incomplete."""
_LINGER_SECONDS = 1
_MANY_PIECES = 1024
_SMALL_PIECE = 16
_CLOSE = (b"connection", b"close")


class Connection(H11Protocol):
    """HTTP/1.1 to one client. Use a subclass made by :func:`connections`, which knows the settings.

    A request must arrive whole within ``request_seconds``. The clock starts with the connection, or with the first byte
    of a further request; between requests, uvicorn closes an idle connection by itself. Where there are too many
    connections, of all clients or of one address, the oldest one that asks nothing makes room: one that never asked
    anything, or else one that has had its answer.

    A client that is answered before it has sent its whole request gets a second to read the answer. What it goes on to
    send is dropped unread.
    """

    settings: ServerSettings
    unasked: dict["Connection", None]
    """Those that have sent no request yet, the oldest first."""
    answered: dict["Connection", None]
    """Those that have had all their answers, and asked nothing more."""
    addresses: dict[str, int]
    """How many connections each address has."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportArgumentType]
        self.conn = _Http()
        self.address: str | None = None
        self.lingers = False
        self._arriving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the connection, unless there are too many that wait for an answer."""
        super().connection_made(_Lingering(transport, self))  # pyright: ignore[reportArgumentType]
        self.address = self.client[0] if self.client else None
        if self.address is not None:
            self.addresses[self.address] = self.addresses.get(self.address, 0) + 1
        if not self._has_room():
            transport.abort()
            return
        self.unasked[self] = None
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        super().connection_lost(exc)
        self._asks()
        if self.address is not None and self.addresses.get(self.address):
            self.addresses[self.address] -= 1
            if not self.addresses[self.address]:
                del self.addresses[self.address]
        for timer in (self._arriving, self._stalled):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on; the clock stops when the request is there."""
        if self.lingers:
            return
        if self._arriving is None and self.conn.their_state is h11.IDLE:
            self._expect_request()
        for start in range(0, len(data), _SLICE_BYTES):
            if not self.transport.is_closing():
                super().data_received(data[start : start + _SLICE_BYTES])
        if self.conn.their_state is not h11.IDLE:
            self._asks()
        if self._arriving is not None and self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._arriving.cancel()
            self._arriving = None

    def on_response_complete(self) -> None:
        """The client may ask again."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.answered[self] = None

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

    def linger(self, transport: asyncio.Transport) -> None:
        """Close once what was written is on its way, and the client has had a moment to read it."""
        if self.lingers:
            return
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            transport.close()
            return
        self.lingers = True
        transport.write_eof()
        transport.resume_reading()  # a socket that is closed with something unread is reset, and the answer lost
        self.loop.call_later(_LINGER_SECONDS, transport.abort)

    def _has_room(self) -> bool:
        """Whether there is room for this connection, if need be since another one makes it."""
        mine = self.addresses.get(self.address or "", 0) > self.settings.max_connections_per_address
        if not mine and len(self.connections) <= self.settings.max_connections:
            return True
        waiting = (other for others in (self.unasked, self.answered) for other in others)
        oldest = next((other for other in waiting if not mine or other.address == self.address), None)
        if oldest is None:
            return False
        oldest._asks()
        oldest.transport.abort()
        return True

    def _asks(self) -> None:
        """This connection is none of those that could make room."""
        self.unasked.pop(self, None)
        self.answered.pop(self, None)

    def _expect_request(self) -> None:
        self._arriving = self.loop.call_later(self.settings.request_seconds, self._too_late)

    def _too_late(self) -> None:
        self._arriving = None
        if not self.transport.is_closing():
            self.transport.abort()


def connections(settings: ServerSettings) -> type[Connection]:
    """The class of connections with these settings, which uvicorn makes one of for each client."""
    shared: dict[str, Any] = {"settings": settings, "unasked": {}, "answered": {}, "addresses": {}}
    return type("ServedConnection", (Connection,), shared)


class _Http(h11.Connection):
    """h11's state of one connection, which is closed behind an answer where that is safer.

    - Where the answer comes before the whole request: the rest is read by nobody.
    - Where a request has both a length and chunks: a proxy in between may think that it ends elsewhere (RFC 9112, 6.1).
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._ambiguous = False
        self._num_pieces = self._num_bytes = 0

    def next_event(self) -> Any:
        """As h11's; a body in thousands of tiny chunks, which cost far more than they hold, is no HTTP either."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_pieces = self._num_bytes = 0
            self._ambiguous = {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}
        elif isinstance(event, h11.Data):
            self._num_pieces += 1
            self._num_bytes += len(event.data)
            if self._num_pieces > _MANY_PIECES and self._num_bytes < _SMALL_PIECE * self._num_pieces:
                raise h11.RemoteProtocolError("the body comes in too many tiny chunks")
        return event

    def send(self, event: Any) -> Any:
        """As h11's."""
        if isinstance(event, h11.Response) and (self._ambiguous or self.their_state is h11.SEND_BODY):
            headers = [(name, value) for name, value in event.headers if name != _CLOSE[0]] + [_CLOSE]
            event = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
        return super().send(event)


class _Lingering:
    """A transport whose end is left to its connection."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close, by :meth:`Connection.linger`."""
        self._connection.linger(self._transport)

    def is_closing(self) -> bool:
        """Whether nothing more is to be said or heard."""
        return self._connection.lingers or self._transport.is_closing()
