"""Forced calls and formats, from the request through grammar, engine and parser, by OpenAI's own client."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from leyden.model import HybridLM
from leyden.serve import Engine
from leyden.serve.http import ServedModel, ServerSettings, Service, create_app
from leyden.serve.loop import EngineLoop
from leyden.tokenizer import Tokenizer

openai = pytest.importorskip("openai")

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Leyden", "Delft"]}, "days": {"type": "boolean"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": NOTHING}},
]
ASKED: dict[str, Any] = {
    "model": "jar",
    "messages": [{"role": "user", "content": "The weather?"}],
    "max_tokens": 300,
    "seed": 3,
}


@pytest.fixture
def talk(model: HybridLM, tokenizer: Tokenizer) -> Callable[[Callable[[Any], Coroutine[Any, Any, None]]], None]:
    """Runs a coroutine that is given a client of a served model."""

    @asynccontextmanager
    async def client() -> AsyncIterator[Any]:
        loop = EngineLoop(Engine(model, tokenizer, max_sequences=2, kv_gigabytes=0.01))
        loop.start()
        names = ServedModel(("jar",), tokenizer, loop.engine.max_positions, model.config.vocab_size, "jar")
        transport = httpx.ASGITransport(create_app(Service(loop, names, ServerSettings())))
        async with httpx.AsyncClient(transport=transport) as http:
            yield openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=http, max_retries=0)
        loop.drain(10)

    async def run(work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async with client() as opened:
            await work(opened.chat.completions)

    return lambda work: asyncio.run(run(work))


def test_a_forced_call_and_its_result(talk: Callable[..., None]) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}

    async def work(chats: Any) -> None:
        for choice in ("required", named):
            whole = await chats.create(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, **ASKED)
            message = whole.choices[0].message
            assert whole.choices[0].finish_reason == "tool_calls" and message.content is None
            (call,) = message.tool_calls
            assert call.type == "function" and call.id.startswith("call_")
            assert call.function.name == "get_weather" or choice == "required"
            keys = {"get_weather": {"city", "days"}, "now": set()}[call.function.name]
            assert json.loads(call.function.arguments).keys() == keys
            streamed = await chats.create(
                tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, stream=True, **ASKED
            )
            deltas = [d async for chunk in streamed for d in chunk.choices[0].delta.tool_calls or []]
            assert deltas[0].function.name == call.function.name
            assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
        # The client's own message object goes back, with the result.
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        messages = [*ASKED["messages"], message, result]
        answer = await chats.create(tools=TOOLS, **{**ASKED, "messages": messages, "max_tokens": 5})
        assert answer.usage.prompt_tokens > whole.usage.prompt_tokens

    talk(work)


def test_an_answer_of_a_schema(talk: Callable[..., None]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}

    async def work(chats: Any) -> None:
        answer = await chats.create(response_format=form, **ASKED)
        assert answer.choices[0].finish_reason == "stop"
        assert json.loads(answer.choices[0].message.content).keys() == {"city", "days"}
        broken = {**form["json_schema"], "schema": {"type": "what"}}
        with pytest.raises(openai.BadRequestError):
            await chats.create(response_format={**form, "json_schema": broken}, **ASKED)
        # With functions beside it, as the Agents SDK sends both: the answer fits, or calls.
        for streamed in (False, True):
            more = {"tools": TOOLS, "parallel_tool_calls": False, "stream": streamed}
            both = await chats.create(response_format=form, **more, **ASKED)
            if streamed:
                deltas = [chunk.choices[0].delta async for chunk in both]
                text = "".join(delta.content or "" for delta in deltas)
                calls = [call.function for delta in deltas for call in delta.tool_calls or []]
                arguments = ["".join(call.arguments or "" for call in calls)] if calls else []
            else:
                text, calls = both.choices[0].message.content, both.choices[0].message.tool_calls or []
                arguments = [call.function.arguments for call in calls]
            assert arguments or json.loads(text).keys() == {"city", "days"}
            assert all(isinstance(json.loads(each), dict) for each in arguments[:1])

    talk(work)
