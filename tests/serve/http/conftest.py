"""A scripted engine behind the real application, in process and behind a real socket."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from leyden.core.errors import UserError
from leyden.serve.http import ServedModel, Server, ServerSettings, Service, create_app, listen, url
from leyden.serve.request import CacheUse, Delta, QueueFullError, Request, RequestUsage
from leyden.serve.sampling import Sampling, TokenLogprobs
from leyden.serve.statistics import Statistics
from leyden.serve.text import TextStream
from leyden.tokenizer import Tokenizer

_ANSWER = "The jar ☂ keeps the lightning. "
CONTEXT = 512


@dataclass
class ScriptedLoop:
    """Answers every request with the same words, over and over; speed and mishaps are set by the test.

    Each completion says its index first, so that completions differ.
    """

    tokenizer: Tokenizer
    alive: bool = True
    ready: bool = True
    statistics: Statistics = field(default_factory=Statistics)
    step_seconds: float = 0
    prefill_steps: int = 0
    room: int = 1000
    fail_after: int | None = None
    requests: list[Request] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    ahead: list[list[int]] = field(default_factory=list)
    drained: bool = False
    ended: bool = False

    async def prepare(self, sampling: Sampling) -> None:
        """Nothing takes long here."""

    def submit(self, request: Request) -> ScriptedDeltas:
        if len(self.running) >= self.room:
            raise QueueFullError("1 request waits already; try again in a second.")
        if request.sampling.seed == 666:
            raise UserError("the number of the beast is refused")
        self.requests.append(request)
        self.running.add(request.id)
        return ScriptedDeltas(self, request)

    async def between_steps(self, work: Callable[[Any], None]) -> None:
        work(self)

    def read_ahead(self, tokens: list[int], salt: str) -> None:
        self.ahead.append(tokens)

    def drain(self, timeout: float) -> None:
        self.ready = False
        until = time.monotonic() + timeout
        while self.running and time.monotonic() < until:
            time.sleep(0.01)
        self.ended = True
        self.drained = True

    def words(self, request: Request, index: int) -> Iterator[int]:
        sampling = request.sampling
        script = self.tokenizer.encode(f"{index}: {_ANSWER}")
        for count in range(sampling.max_tokens):
            yield script[count % len(script)]

    def logprobs(self, token: int, num_top: int) -> TokenLogprobs:
        others = [other for other in range(num_top + 1) if other != token][:num_top]
        return TokenLogprobs(token, -0.5, tuple((other, -1.0 - place) for place, other in enumerate(others)))


class ScriptedDeltas:
    """Deltas of one request; closing ends it, as the engine's own do."""

    def __init__(self, loop: ScriptedLoop, request: Request) -> None:
        self._loop = loop
        self._request = request
        self._deltas = self._run()

    def __aiter__(self) -> ScriptedDeltas:
        return self

    async def __anext__(self) -> Delta:
        return await self._deltas.__anext__()

    async def aclose(self) -> None:
        await self._deltas.aclose()
        if self._request.id in self._loop.running:
            self._loop.running.discard(self._request.id)
            self._loop.aborted.append(self._request.id)

    async def _run(self) -> AsyncGenerator[Delta, None]:
        loop, request, sampling = self._loop, self._request, self._request.sampling
        for step in range(loop.prefill_steps):
            await asyncio.sleep(loop.step_seconds)
            yield Delta(request.id, read_tokens=step)
        drawn = 0
        asked = sampling.prompt_logprobs
        of_prompt = None
        if asked is not None:
            of_prompt = (None, *(loop.logprobs(token, asked) for token in request.tokens[1:]))
        for index in range(sampling.n):
            text = TextStream(loop.tokenizer, sampling.stop)
            for count, token in enumerate(loop.words(request, index), start=1):
                await asyncio.sleep(loop.step_seconds)
                if loop.ended:
                    loop.running.discard(request.id)
                    yield Delta(request.id, index, finish_reason="aborted")
                    return
                if loop.fail_after is not None and drawn >= loop.fail_after:
                    loop.running.discard(request.id)
                    yield Delta(request.id, index, finish_reason="error", error="out of memory, in this test")
                    return
                drawn += 1
                piece = text.push(token)
                reason = "stop" if text.stopped else "length" if count == sampling.max_tokens else None
                if reason:
                    piece += text.finish()
                    if index == sampling.n - 1:
                        loop.running.discard(request.id)
                yield Delta(
                    request.id,
                    index,
                    piece,
                    (token,),
                    (loop.logprobs(token, sampling.logprobs),) if sampling.logprobs is not None else (),
                    of_prompt if drawn == 1 else None,
                    len(request.tokens),
                    reason,
                    RequestUsage(len(request.tokens), drawn, CacheUse(possible=3, used=2), 0, 0, 0) if reason else None,
                )
                if reason:
                    break


@pytest.fixture
def loop(tokenizer: Tokenizer) -> ScriptedLoop:
    return ScriptedLoop(tokenizer)


@pytest.fixture
def make_service(loop: ScriptedLoop, tokenizer: Tokenizer) -> Callable[..., Service]:
    def make(**settings: object) -> Service:
        served = ServedModel(("jar", "lightning"), tokenizer, CONTEXT, tokenizer.vocab_size, "models/jar", created=7)
        return Service(loop, served, ServerSettings.parse({"port": 0, **settings}, "test"))

    return make


class CurrentLoop:
    """Whatever loop the running test uses: making an application takes a tenth of a second, so tests share them."""

    def __init__(self) -> None:
        self.loop: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)


@pytest.fixture(scope="session")
def applications() -> tuple[CurrentLoop, dict[object, FastAPI]]:
    return CurrentLoop(), {}


@pytest.fixture
def client(
    make_service: Callable[..., Service],
    loop: ScriptedLoop,
    applications: tuple[CurrentLoop, dict[object, FastAPI]],
) -> Callable[..., httpx.Response]:
    """Sends one request to an application in this process: ``client("POST", "/path", json=...)``."""
    current, apps = applications
    current.loop = loop

    def send(method: str, path: str, *, settings: tuple[tuple[str, object], ...] = (), **options: object):
        if settings not in apps:
            apps[settings] = create_app(replace(make_service(**dict(settings)), loop=current))

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(apps[settings], raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
                return await session.request(method, path, **options)  # pyright: ignore[reportArgumentType]

        return asyncio.run(run())

    return send


class Serve:
    """Starts servers on free ports, each in a thread; calling gives a URL.

    Attributes:
        loop: of the engine that answers; the scripted one unless the test sets another.
    """

    def __init__(self, make_service: Callable[..., Service], loop: ScriptedLoop) -> None:
        self.loop = loop
        self._make_service = make_service
        self._servers: list[tuple[Server, threading.Thread]] = []

    def __call__(self, **settings: object) -> str:
        service = replace(self._make_service(**{"drain_seconds": 0.2, **settings}), loop=self.loop)
        bound = listen(service.settings)
        server = Server(create_app(service), service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        self._servers.append((server, thread))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        return url(bound)

    def end(self) -> None:
        """As SIGTERM would."""
        for server, _ in self._servers:
            server.handle_exit(signal.SIGTERM, None)

    def join(self) -> None:
        for server, thread in self._servers:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def serve(make_service: Callable[..., Service], loop: ScriptedLoop) -> Iterator[Serve]:
    servers = Serve(make_service, loop)
    yield servers
    servers.join()
