"""The log of requests: a line each, with what it cost, and nothing of what was said."""

import logging
import re
from collections.abc import Callable

import httpx
import pytest

Client = Callable[..., httpx.Response]
Lines = Callable[[], list[str]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, "leyden")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion(client: Client, lines: Lines, stream: bool) -> None:
    client("POST", "/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4, "n": 2, "stream": stream})
    (line,) = lines()
    expected = (
        r"127.0.0.1 POST /v1/completions 200 response=cmpl-\w+ end=length prompt=3 cached=2 output=8 first=0\.\d{3}s "
        r"total=\d\.\d{3}s id=req-[0-9a-f]{32}"
    )
    assert re.fullmatch(expected, line)


def test_what_was_said_is_not_told(client: Client, lines: Lines) -> None:
    said = {"messages": [{"role": "user", "content": "confidential"}], "max_tokens": 3, "seed": 666, "user": "me"}
    for body in (said, {**said, "seed": 1}, {**said, "other": "confidential"}):
        client("POST", "/v1/chat/completions?confidential", json=body)
    assert re.search("POST /v1/chat/completions 400 .*=chatcmpl-.* end=closed prompt=.* output=0 total", lines()[0])
    assert re.search("POST /v1/chat/completions 200 .*=chatcmpl-.* end=length .*output=3 first", lines()[1])
    assert " 400 code=unsupported_parameter param=other total" in lines()[2]
    assert not any("confidential" in line for line in lines())


def test_an_answer_that_fails(client: Client, loop, lines: Lines) -> None:
    loop.fail_after = 2
    client("POST", "/v1/completions", json={"prompt": "x", "stream": True})
    assert re.search("200 .*=cmpl-.* end=error .*output=2 ", lines()[-1])


def test_other_requests(client: Client, lines: Lines) -> None:
    for path in ("/health", "/ready", "/metrics"):
        client("GET", path)
    assert lines() == []
    for path in ("/v1/models", "/nowhere%0aINFO+forged", "/" + "x" * 5000):
        client("GET", path)
    client("GET", "/v1/models", settings=(("api_keys", ("key",)),))
    starts = ("/v1/models 200", "/nowhere%0aINFO+forged 404", "/" + "x" * 199 + " 404", "/v1/models 401")
    for line, start in zip(lines(), starts, strict=True):
        assert re.fullmatch(re.escape(f"127.0.0.1 GET {start}") + r"( code=\w+)? total=\d\.\d{3}s id=req-\w+", line)


def test_the_id_of_a_request(client: Client, lines: Lines) -> None:
    response = client("GET", "/v1/models", headers={"x-request-id": "from-the-proxy.7"})
    assert response.headers["x-request-id"] == "from-the-proxy.7"
    assert lines()[0].endswith(" id=from-the-proxy.7")
    for forged in ("two words", "x" * 129, "línea", ""):
        assert (
            client("GET", "/nowhere", headers={"x-request-id": forged.encode()}).headers["x-request-id"][:4] == "req-"
        )


def test_without_it(client: Client, lines: Lines) -> None:
    client("GET", "/v1/models", settings=(("request_log", False),))
    assert lines() == []
