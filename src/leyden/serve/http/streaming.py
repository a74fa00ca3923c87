"""Server-sent events to clients that read fast, slowly, or not at all; and what is done behind an answer."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.serve.http.errors import ApiError
from leyden.serve.http.settings import ServerSettings
from leyden.serve.threads import carry

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = "keep-alive"
_PATIENCE_SECONDS = 0.02


def event(json: str) -> bytes:
    """One event that carries ``json``, which has no line breaks."""
    return b"data: " + json.encode() + b"\n\n"


def comment(text: str) -> bytes:
    """What clients pass over, in the stream of events; ``text`` has no line breaks."""
    return b": " + text.encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and a comment now and then while none does.

    The events' generator runs at its own pace; what the client has not taken yet waits in a bounded buffer. When the
    client goes, or the buffer is full, the generator is closed; a slow client still gets what waits, and then an error.
    One that takes nothing any more is cut off by its connection (:mod:`leyden.serve.http.connection`).

    Args:
        events: whole events; an exception it raises becomes an event, too.
        close: is called in the end, even where ``events`` never began.
        settings: the server's, for the buffer and the pace of comments.
        silence: what a comment says.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], Awaitable[None]],
        settings: ServerSettings,
        silence: Callable[[], str] = lambda: KEEP_ALIVE,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._settings = settings
        self._silence = silence
        self._buffer: deque[bytes] = deque()
        self._ended = False
        self._news = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client has gone."""
        fill = asyncio.create_task(self._fill())
        work = {asyncio.create_task(self._send(send)), asyncio.create_task(_gone(receive))}
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (fill, *work):
                task.cancel()
            await asyncio.gather(fill, *work, return_exceptions=True)
            await self._close()

    async def _fill(self) -> None:
        try:
            async for piece in self._events:
                self._put(piece)
                if self._is_full():
                    await asyncio.sleep(_PATIENCE_SECONDS)  # many events may have come at once: let them be sent
                if self._is_full():
                    raise ApiError(408, "This stream was read too slowly and has been ended.", code="slow_reader")
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._put(event(ApiError.of(error).body.model_dump_json()))
            self._put(DONE)
        finally:
            await self._events.aclose()
            self._ended = True
            self._news.set()

    def _is_full(self) -> bool:
        return len(self._buffer) > self._settings.stream_buffer

    def _put(self, piece: bytes) -> None:
        self._buffer.append(piece)
        self._news.set()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while self._buffer or not self._ended:
            silent = not self._buffer and await self._is_silent()
            piece = b"".join(self._buffer) or (comment(self._silence()) if silent else b"")
            self._buffer.clear()
            if piece:
                await send(_body(piece, more=True))
        await send(_body(b"", more=False))

    async def _is_silent(self) -> bool:
        """Wait for something to send; True when it is time to say that there is nothing."""
        self._news.clear()
        try:
            async with asyncio.timeout(self._settings.keep_alive_seconds):
                await self._news.wait()
        except TimeoutError:
            return True
        return False


def _body(piece: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def while_connected(receive: Receive, work: Awaitable[T]) -> T | None:
    """The result of ``work``; None when the client went before, and the work was cancelled.

    Args:
        receive: of a request whose body has been read.
        work: is awaited in a task of its own.
    """
    task: asyncio.Task[Any] = asyncio.create_task(carry(work))
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class BackgroundTasks:
    """Work of one event loop that goes on by itself; what goes wrong with it is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin with ``work``."""
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, seconds: float) -> None:
        """Wait until all of it is done; what is not in so many seconds is given up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        for task in self._tasks:
            task.cancel()


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except UserError as error:
        logger(__name__).error("behind an answer: %s", error)
    except asyncio.CancelledError:
        raise
    except BaseException:
        logger(__name__).exception("behind an answer, the server made a mistake")
