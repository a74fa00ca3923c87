"""``/v1/chat/completions`` through the application."""

import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from leyden.serve.http.protocol.chat import ChatCompletion
from leyden.serve.request import Request
from leyden.tokenizer import Tokenizer

Client = Callable[..., httpx.Response]
ASK = {"messages": [{"role": "user", "content": "Where is the lightning?"}], "max_completion_tokens": 9}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def chat(client: Client, **body: object) -> dict:
    response = client("POST", "/v1/chat/completions", json={**ASK, **body})
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()


def chunks_of(client: Client, **body: object) -> list[dict]:
    text = client("POST", "/v1/chat/completions", json={**ASK, **body, "stream": True}).text
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def error(client: Client, **body: object) -> dict:
    response = client("POST", "/v1/chat/completions", json={**ASK, **body})
    assert response.status_code == 400, response.text
    return response.json()["error"]


@pytest.fixture
def says(loop, tokenizer: Tokenizer) -> Callable[[str], None]:
    """Lets the scripted model say something else, once, to its end."""

    def script(text: str) -> None:
        tokens = tokenizer.encode(text)

        def words(request: Request, index: int) -> Iterator[int]:
            object.__setattr__(request.sampling, "max_tokens", len(tokens))
            return iter(tokens)

        loop.words = words

    return script


def test_an_answer_has_openais_shape(client: Client, loop, tokenizer: Tokenizer) -> None:
    answer = chat(client)
    choice = answer["choices"][0]
    assert answer["id"].startswith("chatcmpl-")
    assert choice["message"] == {"role": "assistant", "content": choice["message"]["content"], "refusal": None}
    assert choice["finish_reason"] == "length"
    assert list(loop.requests[0].tokens) == tokenizer.encode_chat(ASK["messages"])
    assert answer["usage"]["prompt_tokens"] == len(loop.requests[0].tokens)


def test_an_answer_is_as_long_as_the_context_has_room(client: Client, loop) -> None:
    for limit in ({"max_completion_tokens": None}, {"max_completion_tokens": 5}, {"max_tokens": 9}):
        chat(client, **limit)
    room = 512 - len(loop.requests[0].tokens)
    assert [request.sampling.max_tokens for request in loop.requests] == [room, 5, 9]


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 2, "prompt_logprobs": 1}])
def test_a_stream_says_what_the_whole_says(client: Client, options: dict) -> None:
    whole, chunks = chat(client, **options), chunks_of(client, **options)
    assert chunks[0].get("prompt_logprobs") == whole.get("prompt_logprobs")
    for choice in whole["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert [piece["delta"].get("role") for piece in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == choice["message"]["content"]
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        if options.get("logprobs"):
            told = [place for piece in pieces for place in piece["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]
            assert all(len(place["top_logprobs"]) == 2 for place in told)
            spoken = b"".join(bytes(place["bytes"]) for place in told)
            assert spoken.decode(errors="replace") == choice["message"]["content"]


def test_a_call_of_a_function(client: Client, says: Callable[[str], None]) -> None:
    says('Let me see.\n```typescript\nfunctions.weather({"city": "Leyden"})\n```')
    choice = chat(client, tools=[WEATHER])["choices"][0]
    assert choice["message"]["content"] == "Let me see.\n"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Leyden"}'}
    pieces = [chunk["choices"][0] for chunk in chunks_of(client, tools=[WEATHER])]
    deltas = [delta for piece in pieces for delta in piece["delta"].get("tool_calls", [])]
    assert [delta["index"] for delta in deltas] == [0] * len(deltas)
    assert deltas[0]["type"] == "function"
    assert "".join(delta["function"]["arguments"] for delta in deltas) == '{"city": "Leyden"}'
    assert all("id" not in delta for delta in deltas[1:])


def test_one_call_where_several_are_not_allowed_ends_the_answer(
    client: Client, loop, says: Callable[[str], None]
) -> None:
    says('```typescript\nfunctions.weather({})\nfunctions.weather({"never": "made"})\n``` and more, and more, and more')
    choice = chat(client, tools=[WEATHER], parallel_tool_calls=False)["choices"][0]
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ["{}"]
    assert choice["finish_reason"] == "tool_calls"
    assert loop.aborted == [loop.requests[0].id]


def test_formats_reach_the_engine(client: Client, loop) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    chat(client, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}})
    assert json.loads(loop.requests[0].sampling.grammar.json_schema) == schema


def test_options_without_effect_are_taken(client: Client) -> None:
    chat(
        client,
        user="me",
        metadata={"a": "b"},
        store=False,
        safety_identifier="x",
        prompt_cache_key="y",
        service_tier="auto",
        modalities=["text"],
        audio=None,
        functions=None,
    )


REFUSED = [
    {"messages": []},
    {"messages": "hi"},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "pope", "content": "hi"}]},
    {"messages": [{"role": "user", "content": "hi", "colour": "red"}]},
    {"max_completion_tokens": 0},
    {"max_tokens": 3, "max_completion_tokens": 4},
    {"top_logprobs": 3},
    {"logprobs": 3},
    {"store": True},
    {"modalities": ["text", "audio"]},
    {"audio": {"voice": "ash"}},
    {"reasoning_effort": "high"},
    {"functions": [{"name": "f"}]},
    {"service_tier": "priority"},
    {"echo": True},
    {"tool_choice": "required"},
    {"continue_final_message": True, "add_generation_prompt": True},
]


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: json.dumps(body)[:40])
def test_what_is_wrong_is_refused(client: Client, body: dict) -> None:
    assert error(client, **body)["message"]


def test_a_conversation_beyond_the_context(client: Client) -> None:
    long = [{"role": "user", "content": "☂" * 600}]
    assert error(client, messages=long)["code"] == "context_length_exceeded"
    assert error(client, messages=long)["param"] == "messages"


GOES_ON = {"messages": [*ASK["messages"], {"role": "assistant", "content": "In"}], "continue_final_message": True}


@pytest.mark.parametrize(
    ("asked", "script"),
    [
        ({}, "In the jar"),
        ({"tools": [WEATHER]}, 'Hm.\n```typescript\nfunctions.weather({"city":  "Leyden"})\n```'),
        (GOES_ON, " the jar"),
    ],
    ids=["text", "call", "goes on"],
)
def test_the_next_turn_is_read_ahead(serve, loop, says: Callable[[str], None], asked: dict, script: str) -> None:
    url = f"{serve()}/v1/chat/completions"
    says(script)
    body = {**ASK, **asked}
    answer = httpx.post(url, json=body).json()["choices"][0]["message"]
    assert not loop.requests[0].cache_completion
    end = time.monotonic() + 10
    while not loop.ahead:
        assert time.monotonic() < end
        time.sleep(0.01)
    calls = answer.get("tool_calls", [])
    following = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in calls]
    if asked is GOES_ON:
        answer["content"] = "In" + answer["content"]
    del answer["refusal"]
    turns = [*ASK["messages"], answer, *(following or [{"role": "user", "content": "And now?"}])]
    httpx.post(url, json={**ASK, "messages": turns, "tools": asked.get("tools")})
    (ahead, *_) = loop.ahead
    assert list(loop.requests[1].tokens[: len(ahead)]) == ahead
    assert len(ahead) > len(loop.requests[0].tokens)
