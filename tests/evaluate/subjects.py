"""Stand-ins for models: one that always knows the answer, one that never does, and an endpoint on loopback."""

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from leyden.evaluate.haystack import Haystack
from leyden.evaluate.sources.source import ReadProgress
from leyden.evaluate.task import Answer, Question, Subject
from leyden.tokenizer import Tokenizer

TEXT = "The jar keeps the lightning.\nNobody knows how long it will stay there.\nAsk the keeper of the tower.\n" * 8


def make_subject(
    folder: Path, positions: int | None = 4096, text: str = TEXT, tokenizer: Tokenizer | None = None
) -> Subject:
    tokenizer = Tokenizer.train([TEXT], vocab_size=300) if tokenizer is None else tokenizer
    (folder / "hay").mkdir(exist_ok=True)
    (folder / "hay" / "a.txt").write_text(text)
    return Subject("a model", tokenizer, positions, tokenizer.vocab_size, Haystack(tokenizer, [folder / "hay"]))


class Oracle:
    """Answers each question by ``says``: by default with what is expected."""

    identity = "oracle"

    def __init__(self, says: Callable[[Question], str] = lambda question: " ".join(question.expected)) -> None:
        self.asked: list[Question] = []
        self._says = says

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        for index, question in enumerate(questions):
            self.asked.append(question)
            if question.max_tokens:
                yield index, Answer(self._says(question), len(question.prompt))
            else:
                count = len(question.prompt) - 1
                right = bool(self._says(question))
                nats = np.full(count, 0.0 if right else 9.0)
                yield index, Answer("", count + 1, nats, np.full(count, right))

    @property
    def reading(self) -> ReadProgress:
        return ReadProgress(sum(len(question.prompt) for question in self.asked), None)


class Never(Oracle):
    """Knows nothing."""

    identity = "never"

    def __init__(self) -> None:
        super().__init__(lambda question: "")


@contextmanager
def endpoint(answer: Callable[[str, dict[str, Any]], tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An API on loopback: ``answer`` takes a path and a body, and gives a status and JSON (or text).

    Yields:
        Its address, and the bodies that came.
    """
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "the-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append(body)
            self.reply(*answer(self.path, body))

        def reply(self, status: int, content: Any) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Says nothing of clients that went away before their answer, as those of tests of time limits do."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
