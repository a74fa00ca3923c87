"""An OpenAI-compatible endpoint on the loopback interface, whose answers a test decides."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


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


@contextlib.contextmanager
def serving() -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends them all."""
    running = []

    def start(respond: Callable[[int, dict], tuple[int, dict, str]]) -> Server:
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
