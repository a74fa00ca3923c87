"""Clients that are slow, gone, silent, or not speaking HTTP, on real sockets."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

Serve = Callable[..., str]
STREAM = {"prompt": "x", "stream": True, "max_tokens": 400}


@pytest.fixture
def connect() -> Iterator[Callable[[str], socket.socket]]:
    with contextlib.ExitStack() as sockets:

        def make(url: str, timeout: float = 10) -> socket.socket:
            port = int(url.rpartition(":")[2])
            return sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=timeout))

        yield make


def post(path: str, body: dict, length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data) if length is None else length}\r\n\r\n".encode() + data


def until(true: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_ends_its_request(serve: Serve, connect, loop, stream: bool) -> None:
    loop.step_seconds = 0.01
    client = connect(serve())
    client.sendall(post("/v1/completions", {**STREAM, "stream": stream}))
    until(lambda: loop.running)
    client.close()
    until(lambda: not loop.running)
    assert loop.aborted == [loop.requests[0].id]


def test_a_client_that_never_reads_is_cut_off(serve: Serve, connect, loop) -> None:
    """The stream fills the socket's buffers, then the server's own, then the request ends and the connection dies."""
    url = serve(stall_seconds=0.3, stream_buffer=8)
    client = connect(url)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.sendall(post("/v1/completions", {**STREAM, "n": 128, "logprobs": 20, "prompt": "x"}))
    until(lambda: loop.aborted, 30)
    assert not loop.running
    time.sleep(0.5)
    assert b"0\r\n\r\n" not in everything(client)[-10:]
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_slow_reader_is_told(serve: Serve, connect, loop) -> None:
    client = connect(serve(stream_buffer=8))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.sendall(post("/v1/completions", {**STREAM, "n": 128, "logprobs": 20}))
    until(lambda: loop.aborted, 30)
    text = b""
    while b"[DONE]" not in text:
        text = (text + client.recv(1 << 20))[-4096:]
    assert b"slow_reader" in text


def test_comments_keep_a_silent_stream_alive(serve: Serve, loop) -> None:
    loop.step_seconds, loop.prefill_steps = 0.1, 4
    body = {**STREAM, "prompt": [5, 6, 7], "max_tokens": 2}
    lines = httpx.post(f"{serve(keep_alive_seconds=0.04)}/v1/completions", json=body).text.split("\n\n")
    told = [line for line in dict.fromkeys(lines) if line.startswith(":")]
    expected = [*(f": {read} of 3 tokens read" for read in range(3)), ": keep-alive"]
    assert (told[0], told[-1]) == (expected[0], expected[-1])
    assert set(told) <= set(expected)
    assert lines[-2:] == ["data: [DONE]", ""]


def test_a_request_that_never_arrives_whole(serve: Serve, connect) -> None:
    url = serve(request_seconds=0.3)
    silent, half, dripping = connect(url), connect(url), connect(url)
    half.sendall(post("/v1/completions", STREAM, length=10_000))
    for byte in b"GET /health HTTP/1.1\r\n":
        with contextlib.suppress(OSError):
            dripping.sendall(bytes([byte]))
        time.sleep(0.03)
    for client in (silent, half, dripping):
        assert everything(client) == b""
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_client_that_goes_in_the_midst_of_its_body_is_no_defect(
    serve: Serve, connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "leyden")
    client = connect(serve())
    client.sendall(post("/v1/completions", STREAM, length=10_000))
    time.sleep(0.05)
    client.close()
    until(lambda: "code=client_gone" in caplog.text)
    assert "Traceback" not in caplog.text


def test_an_idle_connection_is_closed(serve: Serve, connect) -> None:
    client = connect(serve(idle_seconds=1, request_seconds=60))
    client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert everything(client).startswith(b"HTTP/1.1 200")


def test_a_thousand_idle_connections(serve: Serve, connect) -> None:
    url = serve(max_connections=1100)
    idle = [connect(url) for _ in range(1000)]
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 200
    assert len(idle) == 1000


def test_more_connections_than_allowed(serve: Serve, connect) -> None:
    url = serve(max_connections=3)
    kept = [connect(url) for _ in range(3)]
    for client in kept:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    silent = connect(url)
    assert everything(kept[0]).endswith(b'"ok","weights_version":0}')
    assert httpx.get(f"{url}/health").status_code == 200
    assert everything(silent) == b""
    kept[1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert everything(kept[1]).count(b"HTTP/1.1 200") == 1


def test_connections_that_wait_for_an_answer_do_not_make_room(serve: Serve, connect, loop) -> None:
    loop.step_seconds = 0.05
    url = serve(max_connections=2)
    asking = [connect(url) for _ in range(2)]
    for client in asking:
        client.sendall(post("/v1/completions", STREAM))
    until(lambda: len(loop.running) == 2)
    assert everything(connect(url)) == b""
    assert len(loop.running) == 2


def test_idle_connections_of_one_address_make_room_for_its_own(serve: Serve, connect) -> None:
    url = serve(max_connections_per_address=2)
    idle = [connect(url) for _ in range(2)]
    assert httpx.get(f"{url}/health").status_code == 200
    assert everything(idle[0]) == b""
    idle[1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle[1].recv(100).startswith(b"HTTP/1.1 200")


ENDLESS = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("kind", ["no key", "another type", "no such path", "too large"])
def test_nothing_is_taken_behind_an_early_answer(serve: Serve, connect, kind: str) -> None:
    """The answer arrives, although the client goes on to send; a second later the connection is gone."""
    path = b"/nowhere" if kind == "no such path" else b"/v1/completions"
    key = b"" if kind == "no key" else b"Authorization: Bearer key\r\n"
    client = connect(serve(api_keys=("key",), max_body_bytes=4096))
    client.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\n%s" % (path, key))
    client.sendall(ENDLESS.replace(b"application/json", b"text/plain") if kind == "another type" else ENDLESS)
    began, sent = time.monotonic(), 0
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 8:
            sent += client.send(b"1000\r\n" + b" " * 4096 + b"\r\n")
            time.sleep(0.001)
    assert time.monotonic() - began < 5
    answer = everything(client)
    assert re.match(rb"HTTP/1.1 (401|404|413|415) ", answer), (answer, sent)
    assert b"connection: close" in answer.lower()


def test_a_body_of_tiny_chunks(serve: Serve, connect) -> None:
    client = connect(serve())
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + ENDLESS)
    with contextlib.suppress(OSError):
        client.sendall(b"1\r\n \r\n" * 5000)
    assert everything(client).startswith(b"HTTP/1.1 400")


def test_a_length_beside_chunks_ends_the_connection(serve: Serve, connect) -> None:
    """What stands behind is not taken for a request: whoever believes the length sees it as part of the body."""
    client = connect(serve())
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n" + ENDLESS
    client.sendall(
        head + b"f\r\n" + b'{"prompt": "x"}' + b"\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1 ") == 1


NOT_HTTP = {
    "binary": bytes(range(256)),
    "no version": b"GET /\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a negative length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    "length and chunks": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "folded": b"GET /health HTTP/1.1\r\nHost: a\r\n : b\r\n\r\n",
    "endless headers": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http(serve: Serve, connect, name: str) -> None:
    url = serve(request_seconds=0.5, idle_seconds=1)
    client = connect(url)
    client.sendall(NOT_HTTP[name])
    answer = everything(client)
    if answer:  # some of it is no request yet, and runs out of time
        assert re.match(rb"HTTP/1.1 (400|403|501) ", answer), answer[:80]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert httpx.get(f"{url}/health").status_code == 200


def test_bytes_that_are_no_text(serve: Serve, connect) -> None:
    """In a path and in headers; bodies are tested in test_http_guards."""
    url = serve(api_keys=("key",))
    for path, header in (("/v1/models/%ed%a0%bd%ff", b"Bearer key"), ("/v1/models", b"Bearer \xff\xed\xa0\xbd")):
        client = connect(url)
        client.sendall(b"GET %s HTTP/1.1\r\nHost: \xff\r\nAuthorization: %s\r\n" % (path.encode(), header))
        client.sendall(b"Connection: close\r\n\r\n")
        answer = everything(client)
        assert re.match(rb"HTTP/1.1 (401|404) ", answer), answer[:80]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_body_too_large_is_refused_while_it_arrives(serve: Serve, connect) -> None:
    client = connect(serve(max_body_bytes=4096, request_seconds=1))
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(8):
            client.sendall(b"400\r\n" + b"[" * 1024 + b"\r\n")
    assert client.recv(200).startswith(b"HTTP/1.1 413")


def test_requests_one_behind_the_other(serve: Serve, connect) -> None:
    client = connect(serve(idle_seconds=1))
    client.sendall(post("/v1/completions", {"prompt": "x"}) * 3)
    assert everything(client).count(b"HTTP/1.1 200") == 3


def test_running_requests_finish_when_the_server_ends(serve: Serve, loop) -> None:
    loop.step_seconds = 0.02
    url = serve(drain_seconds=10)
    with httpx.stream("POST", f"{url}/v1/completions", json={**STREAM, "max_tokens": 30}) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        serve.end()
        until(lambda: not loop.ready)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/ready")
        *_, last = [line for line in lines if line]
    assert last == "data: [DONE]"
    until(lambda: loop.drained)


def test_what_does_not_finish_in_time_is_told(serve: Serve, loop) -> None:
    loop.step_seconds = 0.05
    url = serve(drain_seconds=0.3)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        serve.end()
        *_, error, last = [line for line in lines if line]
    assert last == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "service_unavailable"


def test_a_second_signal_ends_everything_at_once(serve: Serve, loop) -> None:
    loop.step_seconds = 0.05
    url = serve(drain_seconds=60)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
        next(stream.iter_lines())
        serve.end()
        serve.end()
        began = time.monotonic()
        serve.join()
    assert time.monotonic() - began < 10
