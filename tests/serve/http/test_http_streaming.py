"""Streams of events by themselves: what is sent when, and that work ends with its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from leyden.serve.http import ServerSettings
from leyden.serve.http.streaming import DONE, EventStream, comment, while_connected

KEEP_ALIVE = comment("keep-alive")
SETTINGS = ServerSettings(keep_alive_seconds=0.05, stream_buffer=4)


class Client:
    """What a server does for one request: takes messages, and tells when the client has gone."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()

    async def receive(self) -> dict:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        await self.reads.wait()
        self.sent.append(message.get("body", b""))


async def run(make: Callable[[Client], AsyncGenerator[bytes, None]]) -> tuple[Client, int]:
    client, closed = Client(), []

    async def close() -> None:
        closed.append(True)

    await EventStream(make(client), close=close, settings=SETTINGS)({"type": "http"}, client.receive, client.send)
    return client, len(closed)


def test_events_and_then_the_end() -> None:
    async def events(client: Client) -> AsyncGenerator[bytes, None]:
        yield b"one"
        await asyncio.sleep(0.12)
        yield b"two"

    client, closed = asyncio.run(run(events))
    assert closed == 1
    assert client.sent == [b"", b"one", KEEP_ALIVE, KEEP_ALIVE, b"two", b""]


def test_many_events_at_once_are_not_a_slow_reader() -> None:
    async def events(client: Client) -> AsyncGenerator[bytes, None]:
        for number in range(100):
            yield bytes([number])

    client, _ = asyncio.run(run(events))
    assert b"".join(piece for piece in client.sent if piece != KEEP_ALIVE) == bytes(range(100))


def test_a_slow_reader_gets_what_was_said_and_an_error() -> None:
    ended = []

    async def events(client: Client) -> AsyncGenerator[bytes, None]:
        client.reads.clear()
        asyncio.get_running_loop().call_later(0.4, client.reads.set)
        try:
            for number in range(100):
                await asyncio.sleep(0)
                yield bytes([number])
        finally:
            ended.append(number)

    client, closed = asyncio.run(run(events))
    said = b"".join(client.sent)
    assert (ended, closed) == ([4], 1)
    assert said.startswith(bytes(range(5)))
    assert said.endswith(DONE)
    assert b"slow_reader" in said


def test_a_client_that_goes_takes_the_work_with_it() -> None:
    ended = []

    async def events(client: Client) -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            client.gone.set()
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    client, closed = asyncio.run(run(events))
    assert (ended, closed) == ([True], 1)
    assert client.sent == [b"", b"one"]


@pytest.mark.parametrize("goes", [True, False])
def test_work_without_a_stream(goes: bool) -> None:
    ended = []

    async def work(client: Client) -> str:
        try:
            if goes:
                client.gone.set()
                await asyncio.sleep(60)
            return "done"
        finally:
            ended.append(True)

    async def both() -> str | None:
        client = Client()
        return await while_connected(client.receive, work(client))

    assert asyncio.run(both()) == (None if goes else "done")
    assert ended == [True]


def test_a_failure_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("as it was")

    async def both() -> None:
        await while_connected(Client().receive, work())

    with pytest.raises(ValueError, match="as it was"):
        asyncio.run(both())
