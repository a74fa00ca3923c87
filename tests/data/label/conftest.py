import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leyden.data.documents import Document
from leyden.data.engine import DataEngine
from leyden.data.label import Reply
from leyden.data.parquet import DocumentsWriter, batches, read_batches
from leyden.data.stage import Corpus


class FakeModel:
    """Answers by a function of the request; counts what it is asked."""

    def __init__(self, answer: Callable[..., str | Reply]) -> None:
        self.identity = "fake"
        self.asked = []
        self._answer = answer

    def complete(self, requests):
        for index in reversed(range(len(requests))):  # any order is allowed
            self.asked.append(requests[index])
            answer = self._answer(requests[index])
            yield index, answer if isinstance(answer, Reply) else Reply(answer)


class Server(ThreadingHTTPServer):
    """Gives (status, headers, body) by a function of the number of the call and the request's JSON."""

    def __init__(self, respond: Callable[[int, dict], tuple[int, dict, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.calls: list[dict] = []
        self.headers: list[dict] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away before their answer, as those of tests of time limits do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.calls)
            self.server.calls.append({**data, "path": self.path})
            self.server.headers.append(dict(self.headers))
        status, headers, body = self.server.respond(number, data)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client had no patience
            self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running = []

    def start(respond):
        server = Server(respond)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def fake():
    return FakeModel


@pytest.fixture
def make_corpus(tmp_path):
    """A corpus of documents cut into shards, with a work directory of its own."""

    def make(documents: list[Document], cuts: int = 1, name: str = "a", model=None, workers: int = 1) -> Corpus:
        shards = {}
        for number in range(cuts):
            path = tmp_path / name / f"s{number}.parquet"
            with DocumentsWriter(path) as file:
                for batch in batches(documents[number::cuts]):
                    file.write(batch)
            shards[f"s{number}"] = path
        work = tmp_path / name / "stage" / "work"
        work.mkdir(parents=True)
        return Corpus(shards, work, DataEngine(workers), None if model is None else lambda path: model)

    return make


@pytest.fixture
def run_stage():
    """Prepare and apply a stage as a build does; every row, by id."""

    def run(stage, corpus: Corpus) -> dict[str, dict]:
        stage.prepare(corpus)
        rows = {}
        for shard, path in corpus.shards.items():
            for batch in read_batches(path):
                for row in stage.apply(batch, shard, corpus.work).table.to_pylist():
                    row["scores"] = dict(row["scores"] or ())
                    row["metadata"] = json.loads(row["metadata"] or "{}")
                    rows[row["id"]] = row
        return rows

    return run


@pytest.fixture
def model_directory(tmp_path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    return directory
