"""One client never holds up another: ``/health`` and a running stream, while each route is given its worst body.

The quick form measures the processor time of what the server's event loop does in one go, since everybody waits for
that; with smaller bodies of the same kinds, a fault takes a second there. The slow form measures the waits themselves,
to which other threads add, and a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

Serve = Callable[..., str]
JSON = {"content-type": "application/json"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def filled(item: bytes, head: bytes, tail: bytes, size: int) -> bytes:
    """``item`` as often as ``size`` bytes have room for."""
    return head + b",".join([item] * max(1, (size - len(head) - len(tail)) // (len(item) + 1))) + tail


def results_in_reverse(size: int) -> bytes:
    number = min(8000, size // 150)
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(number)]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "y"} for call in reversed(calls)]
    return json.dumps({"messages": messages}).encode()


WORST: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "ids": (TEXT, lambda size: filled(b"5", b'{"prompt":[', b"]}", size)),
    "wrong ids": (TEXT, lambda size: filled(b"-1", b'{"prompt":[', b"]}", size)),
    "lists": (TEXT, lambda size: filled(b"[]", b'{"prompt":[', b"]}", size)),
    "lists of ids": (TEXT, lambda size: filled(b"[5,5,5,5]", b'{"prompt":[', b"]}", size)),
    "texts": (TEXT, lambda size: filled(b'"a"', b'{"prompt":[', b"]}", size)),
    "a text": (TEXT, lambda size: b'{"prompt":"' + b"word " * (size // 5) + b'"}'),
    "fields": (TEXT, lambda size: b'{"prompt":"x",' + b",".join(b'"k%d":0' % i for i in range(size // 12)) + b"}"),
    "stops": (TEXT, lambda size: filled(b"0", b'{"prompt":"x","stop":[', b"]}", size)),
    "biases": (
        TEXT,
        lambda size: b'{"prompt":"x","logit_bias":{' + b",".join(b'"x%d":0' % i for i in range(size // 12)) + b"}}",
    ),
    "zeros for messages": (CHAT, lambda size: filled(b"0", b'{"messages":[', b"]}", size)),
    "messages": (CHAT, lambda size: filled(b'{"role":"user","content":"a"}', b'{"messages":[', b"]}", size)),
    "a message": (CHAT, lambda size: b'{"messages":[{"role":"user","content":"' + b"word " * (size // 5) + b'"}]}'),
    "parts": (CHAT, lambda size: filled(b'{"type":"x"}', b'{"messages":[{"role":"user","content":[', b"]}]}", size)),
    "results in reverse": (CHAT, results_in_reverse),
    "tools": (CHAT, lambda size: filled(b"0", b'{"messages":[{"role":"user","content":"a"}],"tools":[', b"]}", size)),
    "to tokens": ("/tokenize", lambda size: b'{"return_token_strs":true,"prompt":"' + b"word " * (size // 5) + b'"}'),
    "from tokens": ("/detokenize", lambda size: filled(b"5", b'{"tokens":[', b"]}", size)),
    "no JSON": ("/tokenize", lambda size: b"[" * size),
}


@contextlib.contextmanager
def watched(url: str) -> Iterator[list[float]]:
    """How long ``/health`` and the pieces of a stream are waited for, meanwhile."""
    waits: list[float] = []
    over = threading.Event()

    def health() -> None:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        while not over.is_set():
            began = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            waits.append(time.perf_counter() - began)
            time.sleep(0.005)
        connection.close()

    def stream() -> None:
        body = {"prompt": "x", "stream": True, "max_tokens": 100_000}
        with httpx.stream("POST", f"{url}{TEXT}", json=body, timeout=60) as response:
            last = time.perf_counter()
            for _ in response.iter_bytes():
                now = time.perf_counter()
                waits.append(now - last)
                last = now
                if over.is_set():
                    return

    watchers = [threading.Thread(target=watch) for watch in (health, stream)]
    for each in watchers:
        each.start()
    try:
        yield waits
    finally:
        over.set()
        for each in watchers:
            each.join(60)


def measure(url: str, size: int) -> dict[str, float]:
    """The longest wait in seconds beside each of the worst bodies."""
    longest = {}
    with watched(url) as waits:
        for name, (path, make) in WORST.items():
            body = make(size)
            del waits[:]
            response = httpx.post(url + path, content=body, headers=JSON, timeout=600)
            longest[name] = max(waits, default=0)
            assert response.status_code in (200, 400, 413), (name, response.text[:200])
            assert response.status_code == 200 or len(response.content) < 5000, name
    return longest


def test_the_event_loop_does_nothing_that_grows_with_a_body(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        spans.append(time.thread_time() - began)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    url = serve()
    longest = {}
    for name, (path, make) in WORST.items():
        del spans[:]
        response = httpx.post(url + path, content=make(100_000), headers=JSON, timeout=60)
        assert response.status_code in (200, 400), (name, response.text[:200])
        assert response.status_code == 200 or len(response.content) < 5000, name
        longest[name] = max(spans)
    assert max(longest.values()) < 0.05, longest


@pytest.mark.slow
def test_nobody_waits_for_the_largest_body(serve: Serve, loop) -> None:
    loop.step_seconds = 0.005
    longest = measure(serve(), (4 << 20) - 100)  # what a server of so short a context allows
    print({name: round(seconds, 3) for name, seconds in longest.items()})
    assert max(longest.values()) < 2, longest


def test_bodies_have_room_together(serve: Serve) -> None:
    """Those that fill it are in the midst of arriving; small ones are still answered."""
    url = serve(max_body_bytes=1 << 20, max_bodies_bytes=1 << 20)
    host = url.removeprefix("http://")
    filling = http.client.HTTPConnection(host, timeout=30)
    filling.putrequest("POST", TEXT)
    for name, value in {**JSON, "content-length": str(1 << 20)}.items():
        filling.putheader(name, value)
    filling.endheaders(b" " * 800_000)
    large = b'{"prompt":"x"}' + b" " * 400_000
    deadline = time.monotonic() + 20
    while (refused := httpx.post(url + TEXT, content=large, headers=JSON)).status_code == 200:
        assert time.monotonic() < deadline
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "busy"
    assert httpx.post(url + TEXT, json={"prompt": "x"}).status_code == 200
    filling.close()
    while httpx.post(url + TEXT, content=large, headers=JSON).status_code != 200:
        assert time.monotonic() < deadline


def test_few_of_many_problems_are_told(serve: Serve) -> None:
    body = {"prompt": "x", **{f"unknown_{number}": 0 for number in range(200)}}
    message = httpx.post(serve() + TEXT, json=body).json()["error"]["message"]
    assert message.count("is not a field") == 8 and message.endswith("And 192 more.")
