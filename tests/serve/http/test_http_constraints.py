"""What the text must be, as OpenAI, vLLM and llama.cpp spell it, and forced calls that are cut off."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from leyden.serve.sampling import Grammar

Client = Callable[..., httpx.Response]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT = {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "now"}}


def schema_grammar() -> Grammar:
    return Grammar.model_validate({"json_schema": SCHEMA})


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"guided_json": SCHEMA}, schema_grammar()),
        ({"guided_json": '{"type": "integer"}'}, Grammar(json_schema='{"type": "integer"}')),
        ({"guided_regex": "a+"}, Grammar(regex="a+")),
        ({"guided_choice": ["a", "b"]}, Grammar(choice=("a", "b"))),
        ({"guided_grammar": 'root ::= "a"'}, Grammar(ebnf='root ::= "a"')),
        ({"grammar": 'root ::= "a"'}, Grammar(ebnf='root ::= "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, schema_grammar()),
        ({"structured_outputs": {"choice": ["a", "b"], "regex": None}}, Grammar(choice=("a", "b"))),
        ({"structured_outputs": {"json_object": True}}, Grammar(json_object=True)),
        ({"structured_outputs": {"structural_tag": {"a": 1}}}, Grammar(structure='{"a": 1}')),
        ({"structured_outputs": {}, "grammar": "", "guided_json": None}, None),
    ],
)
def test_other_spellings_of_a_grammar(client: Client, loop: Any, fields: dict[str, Any], grammar: Grammar) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "a", "max_tokens": 4})):
        response = client("POST", path, json={**body, **fields})
        assert response.status_code == 200, response.text
        assert loop.requests[-1].sampling.grammar == grammar


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guided_json": SCHEMA, "grammar": "x"}, "guided_json and grammar each say what the text must be"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.regex and structured_outputs.ch"),
        ({"structured_outputs": {"rejex": "a"}}, "rejex"),
        ({"guided_json": "{"}, "guided_json: grammar: "),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "two things of one answer"),
        ({"guided_regex": "a", "tools": [TOOL]}, '"tools" and a grammar of its own'),
    ],
)
def test_grammars_that_contradict(client: Client, fields: dict[str, Any], message: str) -> None:
    response = client("POST", "/v1/chat/completions", json={**CHAT, **fields})
    assert response.status_code == 400 and message in response.json()["error"]["message"], response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_answer_without_a_call_is_an_error(client: Client, stream: bool) -> None:
    """The scripted engine writes words and no call, as one would that is cut off before."""
    body = {**CHAT, "tools": [TOOL], "tool_choice": "required", "stream": stream}
    response = client("POST", "/v1/chat/completions", json=body)
    assert response.status_code == (200 if stream else 400)
    assert "before the call that" in response.text and "call_cut_off" in response.text
