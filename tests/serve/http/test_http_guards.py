"""What keeps strangers and accidents out: keys, hosts, bodies, methods, paths."""

import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from leyden.core.errors import UserError
from leyden.serve.http import ServerSettings

Client = Callable[..., httpx.Response]
KEYS = (("api_keys", ("first-key", "second-key")),)
JSON = {"content-type": "application/json"}


def assert_error(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return response.json()["error"]


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/openapi.json"])
def test_open_without_a_key(client: Client, path: str) -> None:
    assert client("GET", path, settings=KEYS).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/tokenizer_info", "/nowhere", "/health/"])
def test_closed_without_a_key(client: Client, path: str) -> None:
    response = client("GET", path, settings=KEYS)
    assert assert_error(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer first-ke", "Bearer first-keyy", "Basic first-key"])
def test_a_wrong_key(client: Client, header: str) -> None:
    assert_error(client("GET", "/v1/models", settings=KEYS, headers={"authorization": header}), 401)


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer second-key", "Bearer  second-key"])
def test_a_right_key(client: Client, header: str) -> None:
    assert client("GET", "/v1/models", settings=KEYS, headers={"authorization": header}).status_code == 200


def test_without_keys_another_name_of_this_machine_is_refused(client: Client) -> None:
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:80", "LOCALHOST"):
        assert client("GET", "/v1/models", headers={"host": host}).status_code == 200
    for host in (
        "evil.example",
        "127.0.0.1.evil.example:8000",
        "",
        "[::2]",
        "localhost.evil.example",
        "[::1].evil.example",
        "[::1",
        "::1]",
        "localhost:8000:1",
        "localhost:x",
        "a:b@localhost",
        "localhost/",
        "127.0.0.1 evil",
    ):
        assert_error(client("GET", "/v1/models", headers={"host": host}), 403)
    assert client("GET", "/health", settings=KEYS, headers={"host": "evil.example"}).status_code == 200


def test_without_keys_a_page_of_another_origin_is_refused(client: Client) -> None:
    own = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    assert client("POST", "/v1/completions", json={"prompt": "x"}, headers=own).status_code == 200
    for origin in ("http://evil.example", "https://localhost:9000", "null", "http://localhost:8000.evil.example"):
        foreign = {"host": "localhost:8000", "origin": origin}
        error = assert_error(client("POST", "/v1/completions", json={"prompt": "x"}, headers=foreign), 403)
        assert error["code"] == "foreign_origin"
    keyed = {"authorization": "Bearer first-key", "origin": "http://evil.example"}
    response = client("GET", "/v1/models", settings=KEYS, headers=keyed)
    assert response.status_code == 200 and "access-control-allow-origin" not in response.headers


PAGE = "https://chat.example.org"


@pytest.mark.parametrize("settings", [(), KEYS], ids=["no key", "keys"])
def test_pages_of_allowed_origins(client: Client, settings: tuple) -> None:
    settings = (*settings, ("allow_origins", (PAGE,)))
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization,content-type,x-stainless-os"
    preflight = client("OPTIONS", "/v1/chat/completions", settings=settings, headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-headers"] == asks["access-control-request-headers"]
    other = client("OPTIONS", "/v1/models", settings=settings, headers={**asks, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    sent = {"origin": PAGE, "authorization": "Bearer first-key"}
    response = client("POST", "/v1/completions", settings=settings, json={"prompt": "x"}, headers=sent)
    assert response.status_code == 200 and response.headers["access-control-allow-origin"] == PAGE
    wrong = client("POST", "/v1/completions", settings=settings, json={"prompt": 5}, headers=sent)
    assert wrong.status_code == 400 and wrong.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", ["*", "chat.example.org", "https://chat.example.org/", "https://Chat.org", "null"])
def test_an_origin_is_exact(origin: str) -> None:
    with pytest.raises(UserError, match="origin"):
        ServerSettings.parse({"allow_origins": (origin,)}, "serve")


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/v1/models", "/v1/models/jar", "/metrics", "/openapi.json"]
)
def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    whole, head = client("GET", path), client("HEAD", path)
    assert head.status_code == whole.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert client("HEAD", "/v1/completions").status_code == 405
    assert client("HEAD", "/nowhere").status_code == 404


def test_under_the_path_of_a_proxy(client: Client) -> None:
    """Whether the proxy takes the path away or not."""
    settings = (*KEYS, ("root_path", "/llm"))
    for path in ("/health", "/llm/health", "/llm/", "/"):
        assert client("GET", path, settings=settings).status_code == 200
    for path in ("/v1/models", "/llm/v1/models"):
        assert client("GET", path, settings=settings).status_code == 401
        assert client("GET", path, settings=settings, headers={"authorization": "Bearer first-key"}).status_code == 200
    assert client("GET", "/openapi.json", settings=settings).json()["servers"] == [{"url": "/llm"}]
    with pytest.raises(UserError, match="root_path"):
        ServerSettings.parse({"root_path": "llm/"}, "serve")


def test_without_keys_the_server_is_on_loopback_alone() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(UserError, match="--api-key"):
            ServerSettings.parse({"host": host}, "serve")
        ServerSettings.parse({"host": host, "api_keys": ("k",)}, "serve")
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        ServerSettings.parse({"host": host}, "serve")


@pytest.mark.parametrize("key", ["", "two words", "ключ", "line\n"])
def test_a_key_is_one_printable_word(key: str) -> None:
    with pytest.raises(UserError, match="printable"):
        ServerSettings.parse({"api_keys": (key,)}, "serve")


MALFORMED = {
    "nothing": b"",
    "half": b'{"prompt": "x"',
    "two": b'{"prompt": "x"} {}',
    "a list": b"[]",
    "a number": b"3",
    "latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "overlong": b'{"prompt": "\xc0\xaf"}',
    "surrogate": b'{"prompt": "\\ud83d"}',
    "surrogate bytes": b'{"prompt": "\xed\xa0\xbd"}',
    "not a number": b'{"prompt": "x", "temperature": NaN}',
    "infinite": b'{"prompt": "x", "temperature": 1e999}',
    "huge number": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "deep lists": b'{"prompt": ' + b"[" * 100_000,
    "deep tables": b'{"a":' * 100_000,
    "nul": b"\x00",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_what_is_not_a_json_object(client: Client, path: str, name: str) -> None:
    assert_error(client("POST", path, content=MALFORMED[name], headers=JSON), 400)


def test_a_message_of_a_lone_surrogate(client: Client) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "\udc00"}]}).encode()
    assert_error(client("POST", "/v1/chat/completions", content=body, headers=JSON), 400)


@pytest.mark.parametrize("depth", [900, 100_000])
def test_deep_arguments_of_a_call(client: Client, depth: int) -> None:
    """They are JSON inside a string, which the template may write out again."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * depth + "]" * depth}}
    called = {"role": "assistant", "tool_calls": [call]}
    messages = [{"role": "user", "content": "x"}, called, {"role": "tool", "tool_call_id": "a", "content": "y"}]
    error = assert_error(client("POST", "/v1/chat/completions", json={"messages": messages}), 400)
    assert error["code"] == "context_length_exceeded"


def test_another_type_than_json(client: Client) -> None:
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        error = assert_error(client("POST", "/v1/completions", content=b'{"prompt": "x"}', headers=kind), 415)
        assert error["code"] == "unsupported_media_type"
    typed = {"content-type": "Application/JSON; charset=utf-8"}
    assert client("POST", "/v1/completions", content=b'{"prompt": "x"}', headers=typed).status_code == 200


def test_a_body_too_large_is_refused_unread(client: Client) -> None:
    small = (("max_body_bytes", 2048),)
    body = b'{"prompt": "' + b"x" * 2000
    assert client("POST", "/v1/completions", settings=small, content=body + b'"}', headers=JSON).status_code == 400
    announced = client("POST", "/v1/completions", settings=small, content=body + b"x" * 48, headers=JSON)
    assert assert_error(announced, 413)["code"] == "body_too_large"
    read = []

    async def unannounced() -> AsyncIterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield b"x" * 1000

    assert_error(client("POST", "/v1/completions", settings=small, content=unannounced(), headers=JSON), 413)
    assert len(read) <= 1000  # httpx' own transport hands the body over whole; test_http_hostile has the socket


def test_methods_and_paths(client: Client) -> None:
    response = client("GET", "/v1/completions")
    assert assert_error(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    for path in ("/v1/nowhere", "/v1/completions/", "/docs", "/" + "x" * 5000):
        assert assert_error(client("GET", path), 404)["code"]


def test_models(client: Client) -> None:
    cards = client("GET", "/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["jar", "lightning"]
    assert cards[0]["max_model_len"] == 512
    assert cards[0]["notice"] is None
    assert client("GET", "/v1/models/lightning").json() == cards[1]
    assert assert_error(client("GET", "/v1/models/org/name"), 404)["code"] == "model_not_found"


def test_the_version_of_the_weights_is_said(client: Client, loop) -> None:
    ask = {"prompt": "x", "max_tokens": 1}
    fingerprints = []
    for version in (0, 3):
        loop.statistics.weights_version = version
        assert client("GET", "/health").json() == {"status": "ok", "weights_version": version}
        assert client("GET", "/v1/models/lightning").json()["weights_version"] == version
        assert {card["weights_version"] for card in client("GET", "/v1/models").json()["data"]} == {version}
        assert f"leyden_weights_version {version}.0" in client("GET", "/metrics").text
        fingerprints.append(client("POST", "/v1/completions", json=ask).json()["system_fingerprint"])
    assert fingerprints[1] == f"{fingerprints[0]}_3"
