"""Fields that mean nothing, that mean alike, and that mean what this server has nothing of."""

from __future__ import annotations

import json
import logging
import typing
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats

from leyden.serve.http.protocol.chat import ChatRequest
from leyden.serve.http.protocol.completions import CompletionRequest
from leyden.tokenizer import Tokenizer

Client = Callable[..., httpx.Response]
PATHS = {"/v1/completions": {"prompt": "x"}, "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]}}
IGNORES = (("ignore_unknown_fields", True),)
BOTH: dict[str, list[Any]] = {
    "stop": ["", [], [""]],
    "logit_bias": [{}],
    "skip_special_tokens": [True],
    "use_beam_search": [False],
    "length_penalty": [1, 1.0],
    "bad_words": [[]],
    "priority": [0],
    "typical_p": [1.0],
    "request_id": ["a"],
    "user": [""],
}
NOTHING: dict[str, dict[str, list[Any]]] = {
    "/v1/completions": {**BOTH, "best_of": [1], "suffix": [""], "echo": [False], "add_special_tokens": [True]},
    "/v1/chat/completions": {
        **BOTH,
        "reasoning_effort": ["none"],
        "verbosity": ["medium"],
        "function_call": ["none", "auto"],
        "functions": [[]],
        "tools": [[]],
        "tool_choice": ["none", "auto"],
        "top_logprobs": [0],
        "store": [False],
        "service_tier": ["auto", "default"],
        "modalities": [["text"]],
        "response_format": [{"type": "text"}],
        "prediction": [{"type": "content", "content": "y"}],
        "prompt_cache_retention": ["24h", "in_memory"],
        "prompt_cache_options": [{"mode": "implicit"}],
        "chat_template_kwargs": [{}],
        "add_special_tokens": [False],
        "documents": [[]],
    },
}


def answer(client: Client, path: str, **fields: Any) -> Any:
    response = client("POST", path, json={**PATHS[path], "max_tokens": 5, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (completions.CompletionCreateParamsNonStreaming, CompletionRequest),
        (completions.CompletionCreateParamsStreaming, CompletionRequest),
        (chats.CompletionCreateParamsNonStreaming, ChatRequest),
        (chats.CompletionCreateParamsStreaming, ChatRequest),
    ],
)
def test_every_field_of_openai_is_known_and_takes_null_where_theirs_does(theirs: Any, ours: Any) -> None:
    hints = typing.get_type_hints(theirs)
    assert hints.keys() - ours.model_fields.keys() == set()
    body = {"model": "jar", "prompt": "x", "messages": PATHS["/v1/chat/completions"]["messages"]}
    nullable = [name for name, hint in hints.items() if type(None) in typing.get_args(hint)]
    ours.model_validate({name: body.get(name) for name in hints if name in nullable or name in body})


@pytest.mark.parametrize("path", PATHS)
def test_a_value_that_means_nothing_is_as_good_as_none(client: Client, path: str) -> None:
    plain = answer(client, path)
    for field, values in NOTHING[path].items():
        for value in [*values, None]:
            assert answer(client, path, **{field: value}) == plain, (field, value)
    options = {"stream": True, "stream_options": {"include_obfuscation": False}}
    assert client("POST", path, json={**PATHS[path], **options}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_other_values_of_such_fields_are_refused_by_name(client: Client, path: str) -> None:
    asked = {"skip_special_tokens": False, "use_beam_search": True, "length_penalty": True, "priority": -1}
    asked |= (
        {"best_of": 2, "suffix": "y"} if "prompt" in PATHS[path] else {"reasoning_effort": "low", "verbosity": "low"}
    )
    for field, value in asked.items():
        error = client("POST", path, json={**PATHS[path], field: value}).json()["error"]
        assert (error["param"], error["code"]) == (field, "unsupported_parameter"), error


def test_a_top_p_of_0_takes_the_most_probable_token(client: Client, loop) -> None:
    answer(client, "/v1/completions", top_p=0, temperature=1.5)
    assert (loop.requests[0].sampling.temperature, loop.requests[0].sampling.top_p) == (0, 1)


def test_names_that_mean_alike(client: Client, loop) -> None:
    for name in ("max_new_tokens", "n_predict", "num_predict"):
        for path, body in PATHS.items():
            client("POST", path, json={**body, name: 7, "repeat_penalty": 1.5})
            sampling = loop.requests[-1].sampling
            assert (sampling.max_tokens, sampling.repetition_penalty) == (7, 1.5)
    twice = client("POST", "/v1/completions", json={"prompt": "x", "max_tokens": 5, "n_predict": 7})
    assert twice.status_code == 400 and "n_predict" in twice.json()["error"]["message"]


def test_variables_of_the_template(client: Client, tokenizer: Tokenizer, loop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    encode = tokenizer.encode_chat

    def noted(*arguments: Any, variables: Any, **named: Any) -> list[int]:
        asked.append(variables)
        return encode(*arguments, variables=variables, **named)

    monkeypatch.setattr(tokenizer, "encode_chat", noted)
    answer(client, "/v1/chat/completions", chat_template_kwargs={"enable_thinking": False})
    assert asked and set(map(json.dumps, asked)) == {'{"enable_thinking": false}'}
    body = {**PATHS["/v1/chat/completions"], "chat_template_kwargs": {"enable_thinking": True}}
    client("POST", "/tokenize", json=body)
    assert {"enable_thinking": True} in asked  # not the last: the chat before is rendered once more after its answer


@pytest.mark.parametrize("path", PATHS)
def test_unknown_fields_are_ignored_where_the_operator_says_so(
    client: Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leyden.serve.http.service")
    unknown = f"num_ctx_{len(path)}"  # applications, and what they have logged, are shared by tests
    more = {unknown: 4096, "reasoning_effort": "high", "suffix": "y", "stream_options": None, "best_of": 4}
    messages = [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}], "colour": "red"}] * 3
    body = {**PATHS[path], **more} | ({"messages": messages} if "messages" in PATHS[path] else {})
    for _ in range(2):
        response = client("POST", path, settings=IGNORES, json=body)
        assert response.status_code == 200, response.text
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) and sum(f"'{unknown}'" in line for line in told) == 1
    wrong = client("POST", path, settings=IGNORES, json={**body, "temperature": "hot"})
    assert wrong.json()["error"]["param"] == "temperature"
    assert client("POST", path, json=body).status_code == 400


def test_a_picture_is_refused_in_one_sentence(client: Client) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}
    error = client("POST", "/v1/chat/completions", json=body).json()["error"]
    assert error["message"] == "'messages.0.content.1.type': Input should be 'text' (given: 'image_url')."
    assert error["param"] == "messages.0.content.1.type"
