"""``/v1/completions`` through the application: shapes, options, refusals."""

from collections.abc import Callable

import httpx

Client = Callable[..., httpx.Response]


def complete(client: Client, **body: object) -> dict:
    response = client("POST", "/v1/completions", json={"prompt": "The jar", **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_completion_has_openais_shape(client: Client) -> None:
    answer = complete(client, max_tokens=4, model="lightning")
    choice = answer["choices"][0]
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "lightning"
    assert answer["system_fingerprint"].startswith("fp_")
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_health_and_its_end(client: Client, loop) -> None:
    assert client("GET", "/health").status_code == client("GET", "/ready").status_code == 200
    loop.ready = False
    assert client("GET", "/health").status_code == 200
    assert client("GET", "/ready").status_code == 503
    loop.alive = False
    assert client("GET", "/health").status_code == 503
    assert client("POST", "/v1/completions", json={"prompt": "x"}).status_code == 503
