"""``/v1/completions`` through the application: shapes, options, refusals."""

import json
from collections.abc import Callable

import httpx
import pytest

from leyden.core.errors import UserError
from leyden.serve.http.protocol.completions import CompletionResponse
from leyden.tokenizer import Tokenizer

Client = Callable[..., httpx.Response]


def complete(client: Client, **body: object) -> dict:
    response = client("POST", "/v1/completions", json={"prompt": "The jar", **body})
    assert response.status_code == 200, response.text
    CompletionResponse.model_validate(response.json())
    return response.json()


def refused(client: Client, **body: object) -> dict:
    response = client("POST", "/v1/completions", json={"prompt": "The jar", **body})
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


def events(response: httpx.Response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


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


def test_max_tokens_is_16_where_left_out_or_null(client: Client) -> None:
    for body in ({}, {"max_tokens": None, "temperature": None, "stop": None, "suffix": None, "best_of": None}):
        assert complete(client, **body)["usage"]["completion_tokens"] == 16


def test_prompts_of_four_kinds(client: Client, loop, tokenizer: Tokenizer) -> None:
    text = "The jar"
    tokens = [tokenizer.bos_id, *tokenizer.encode(text)]
    for prompt in (text, [text], tokens, [tokens]):
        complete(client, prompt=prompt)
    assert all(list(request.tokens) == tokens for request in loop.requests)
    assert [c["index"] for c in complete(client, prompt=["a", "b", "c"], n=2)["choices"]] == [0, 1, 2, 3, 4, 5]


def test_options_reach_the_engine(client: Client, loop) -> None:
    options = {"temperature": 1, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "seed": -3}
    options |= {
        "top_n_sigma": 1.5,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "min_tokens": 3,
        "max_tokens": 9,
        "ignore_eos": True,
    }
    complete(client, **options, stop_token_ids=[5], stop=["☂", "x"], logit_bias={"12": -100}, n=3, user="me")
    sampling = loop.requests[0].sampling
    assert {name: getattr(sampling, name) for name in options} == options
    assert (sampling.stop, sampling.stop_token_ids, sampling.n) == (("☂", "x"), (5,), 3)
    assert sampling.logit_bias == {12: -100}
    for top_k in (0, -1):
        complete(client, top_k=top_k)
        assert loop.requests[-1].sampling.top_k is None


def test_echo_with_logprobs_of_token_prompts_as_lm_eval_asks(client: Client, tokenizer: Tokenizer) -> None:
    prompts = [tokenizer.encode("The lightning"), tokenizer.encode("A jar keeps ☂")]
    answer = complete(client, prompt=prompts, echo=True, logprobs=1, max_tokens=1, seed=1234, temperature=0)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        told = choice["logprobs"]
        assert {len(told[name]) for name in told} == {len(prompt) + 1}
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        assert all(len(top) in (1, 2) for top in told["top_logprobs"][1:])
        assert all(token in top for token, top in zip(told["tokens"][1:], told["top_logprobs"][1:], strict=True))
        for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)
        assert choice["text"].startswith(tokenizer.decode(prompt))


def test_a_part_of_a_character_is_told_by_its_bytes(client: Client, tokenizer: Tokenizer) -> None:
    umbrella = "☃"  # was not in the texts that the tokenizer learnt from
    tokens = complete(client, prompt=umbrella, echo=True, logprobs=0)["choices"][0]["logprobs"]["tokens"]
    assert tokens[1].startswith("bytes:\\x")


def test_the_prompt_alone(client: Client) -> None:
    answer = complete(client, prompt="A jar", echo=True, max_tokens=0, logprobs=2, prompt_logprobs=1)
    choice = answer["choices"][0]
    assert choice["text"] == "A jar"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    first, second = choice["prompt_logprobs"][:2]
    assert first is None
    assert all(set(entry) == {"logprob", "rank", "decoded_token"} for entry in second.values())
    assert complete(client, max_tokens=0)["choices"][0]["text"] == ""


def test_stop_strings_end_the_text(client: Client) -> None:
    choice = complete(client, max_tokens=64, stop="keeps")["choices"][0]
    assert choice["text"] == "0: The jar ☂ "
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 1}, {"n": 3, "prompt_logprobs": 0}])
def test_a_stream_says_what_the_whole_says(client: Client, options: dict) -> None:
    body = {"prompt": ["The jar", "Grüße ☂"], "max_tokens": 9, **options}
    whole = complete(client, **body)
    chunks = events(client("POST", "/v1/completions", json={**body, "stream": True}))
    assert all("usage" not in chunk for chunk in chunks)
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert pieces[0].get("prompt_logprobs") == choice.get("prompt_logprobs")
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is not None:
            for name, values in choice["logprobs"].items():
                assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_usage_with_every_chunk(client: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "x", "max_tokens": 3, "stream": True, "stream_options": options}
    chunks = events(client("POST", "/v1/completions", json=body))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]
    assert chunks[-1]["choices"] == []


REFUSED = [
    ("temperature", False),
    ("temperature", "0.5"),
    ("temperature", -0.1),
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("n", 0),
    ("n", -1),
    ("n", 129),
    ("min_tokens", -1),
    ("top_p", -0.1),
    ("top_p", -1),
    ("top_p", 1.1),
    ("top_k", -2),
    ("min_p", 2),
    ("min_p", -0.1),
    ("top_n_sigma", 0),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("frequency_penalty", -3),
    ("stop_token_ids", [-1]),
    ("prompt_logprobs", -1),
    ("presence_penalty", 3),
    ("seed", 2**63),
    ("stop", ["x"] * 65),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"5": 101}),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True, "colour": "red"}),
    ("prompt", ["x"] * 1025),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", ["x", 1]),
    ("prompt", [1, True]),
    ("prompt", [-1]),
    ("prompt", {"text": "x"}),
    ("suffix", "behind"),
    ("best_of", 2),
    ("tempreature", 0.5),
    ("use_beam_search", True),
]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=lambda value: json.dumps(value)[:30])
def test_what_is_wrong_or_unknown_is_refused_by_name(client: Client, field: str, value: object) -> None:
    error = refused(client, **{field: value})
    assert error["param"].split(".")[0] == field
    assert f"'{field}" in error["message"]
    assert error["type"] == "invalid_request_error"


def test_unsupported_is_another_code_than_wrong(client: Client) -> None:
    assert refused(client, suffix="x")["code"] == refused(client, bogus=1)["code"] == "unsupported_parameter"
    assert refused(client, n=0)["code"] == "invalid_value"


def test_fields_that_contradict_each_other(client: Client) -> None:
    assert "stream" in refused(client, stream_options={"include_usage": True})["message"]
    assert "4096" in refused(client, prompt=["x"] * 64, n=65)["message"]
    assert "min_tokens" in refused(client, min_tokens=5, max_tokens=3)["message"]


def test_a_prompt_beyond_the_context(client: Client, loop) -> None:
    assert refused(client, prompt=[1] * 512, max_tokens=1)["code"] == "context_length_exceeded"
    assert refused(client, prompt=[1] * 500, max_tokens=13)["code"] == "context_length_exceeded"
    assert complete(client, prompt=[1] * 500, max_tokens=12)["usage"]["prompt_tokens"] == 500
    assert refused(client, prompt=[10_000])["param"] == "prompt"
    assert len(loop.requests) == 1


def test_another_model(client: Client) -> None:
    response = client("POST", "/v1/completions", json={"prompt": "x", "model": "jarr"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "'jar'" in response.json()["error"]["message"]


def test_a_full_queue(client: Client, loop) -> None:
    loop.room = 0
    response = client("POST", "/v1/completions", json={"prompt": "x", "stream": True})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_more_prompts_than_the_queue_has_room_for(client: Client, loop) -> None:
    loop.room = 2
    answer = complete(client, prompt=["a", "b", "c", "d", "e"], max_tokens=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4]
    assert len(loop.requests) == 5
    assert not loop.running
    assert answer["usage"]["completion_tokens"] == 25


def test_what_the_engine_refuses(client: Client) -> None:
    assert "beast" in refused(client, seed=666)["message"]


def test_of_several_prompts_one_is_refused(client: Client, loop, tokenizer: Tokenizer) -> None:
    """None of the others goes on."""
    submit = loop.submit

    def picky(request):
        if len(request.tokens) == 1:
            raise UserError("too short for this engine")
        return submit(request)

    loop.submit = picky
    assert "too short" in refused(client, prompt=[[5, 6], [5, 7], [5]])["message"]
    assert len(loop.requests) == 2
    assert not loop.running


def test_what_the_engine_cannot_finish(client: Client, loop) -> None:
    loop.fail_after = 3
    response = client("POST", "/v1/completions", json={"prompt": ["x", "y"]})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "generation_failed"
    assert not loop.running
    chunks = events(client("POST", "/v1/completions", json={"prompt": "x", "stream": True}))
    assert [set(chunk) == {"error"} for chunk in chunks] == [False] * 3 + [True]
    assert chunks[-1]["error"]["message"] == "out of memory, in this test"


def test_a_defect_shows_no_traceback(client: Client, loop, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: object) -> None:
        raise ZeroDivisionError("a secret")

    loop.submit = broken
    response = client("POST", "/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    assert "a secret" in caplog.text


def test_health_and_its_end(client: Client, loop) -> None:
    assert client("GET", "/health").status_code == client("GET", "/ready").status_code == 200
    loop.ready = False
    assert client("GET", "/health").status_code == 200
    assert client("GET", "/ready").status_code == 503
    loop.alive = False
    assert client("GET", "/health").status_code == 503
    assert client("POST", "/v1/completions", json={"prompt": "x"}).status_code == 503
