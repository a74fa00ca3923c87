"""Two servers under the same clients: ``leyden serve`` and ``transformers serve``, each a process of its own."""

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

_START_SECONDS = 120
_STREAM_BYTES = 1 << 20


class ServerError(RuntimeError):
    """A server did not start, or did not answer as it should; the message holds its last words."""


@dataclass(frozen=True)
class StreamedAnswer:
    """One stream of completions as its client saw it.

    Attributes:
        first_seconds: from sending the request to the first text.
        last_seconds: to the end.
        tokens: as the server counted them.
    """

    first_seconds: float
    last_seconds: float
    tokens: int


class ServerProcess:
    """A server of OpenAI's API on a free port of this machine, ended on leaving; its clients ask it from this process.

    Args:
        command: of the server, without its port.
        model: what requests call the model.
        threads: of its computations.

    Raises:
        ServerError: it ended, or was not healthy in two minutes.
    """

    def __init__(self, command: list[str], model: str, *, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._model = model
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on leaving
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self._port)],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **offline},
        )
        try:
            self._wait()
        except ServerError:
            self.__exit__()
            raise

    @classmethod
    def of_leyden(cls, arguments: list[str], model: str, *, threads: int) -> Self:
        """``leyden ARGUMENTS`` as that server."""
        return cls([sys.executable, "-m", "leyden", *arguments], model, threads=threads)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def ask(self, texts: list[str], new: int) -> list[StreamedAnswer]:
        """Complete all of ``texts`` at once, greedily, each over a connection of its own.

        Raises:
            ServerError: an answer was not what was asked for.
        """
        return asyncio.run(self._ask(texts, new))

    async def _ask(self, texts: list[str], new: int) -> list[StreamedAnswer]:
        return list(await asyncio.gather(*(self._stream(text, new) for text in texts)))

    async def _stream(self, text: str, new: int) -> StreamedAnswer:
        """HTTP by hand: a client library costs more than a token does, and the clients share the server's cores."""
        body: dict[str, Any] = {"model": self._model, "prompt": text, "max_tokens": new, "temperature": 0.0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_STREAM_BYTES)
        try:
            writer.write(head.encode() + content)
            first, tokens = await _read(reader, started)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if not tokens:
            raise ServerError(f"a stream ended without a count of its tokens: {self._last_words()}")
        whole = time.perf_counter() - started
        return StreamedAnswer(first or whole, whole, tokens)

    def _wait(self) -> None:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise ServerError(self._last_words())
            try:
                with urlopen(f"{self.url}/health", timeout=5):
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise ServerError(f"not healthy after {_START_SECONDS} s: {self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.poll()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


async def _read(events: asyncio.StreamReader, started: float) -> tuple[float, int]:
    """Seconds since ``started`` when the first text came (0 where none did), and the server's count of tokens."""
    first, tokens = 0.0, 0
    async for line in events:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise ServerError(f"a request failed: {event['error']}")
        if not first and event["choices"] and event["choices"][0]["text"]:
            first = time.perf_counter() - started
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return first, tokens


def our_server(directory: str, threads: int) -> ServerProcess:
    """``leyden serve`` of the model there."""
    return ServerProcess.of_leyden(
        ["serve", directory, "--device", "cpu", "--served-model-name", "bench"], "bench", threads=threads
    )


def their_server(directory: str, threads: int) -> ServerProcess:
    """``transformers serve``, which answers one request after another: its continuous batching refuses the layers."""
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", directory, "--device", "cpu"]
    return ServerProcess(command, directory, threads=threads)


def rate_and_wait(answers: list[StreamedAnswer]) -> tuple[float, float]:
    """Tokens per second of all streams together, and the median seconds to a first text."""
    seconds = max(answer.last_seconds for answer in answers)
    first = statistics.median(answer.first_seconds for answer in answers)
    return sum(answer.tokens for answer in answers) / seconds, first
