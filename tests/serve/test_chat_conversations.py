"""Chats that name a conversation: a server that starts anew goes on from what the last one had read."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from leyden.model import HybridLM
from leyden.serve import Engine
from leyden.serve.http import ServedModel, ServerSettings, Service, create_app
from leyden.serve.loop import EngineLoop
from leyden.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "The lightning struck the old tower. " * 30}  # more than a page of tokens


@pytest.fixture
def serving(model: HybridLM, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Any]:
    """One run of a server after another, over the same directory."""

    @asynccontextmanager
    async def serve(served: HybridLM = model, directory: Path | None = tmp_path / "kept") -> AsyncGenerator[Any, None]:
        loop = EngineLoop(Engine(served, tokenizer, max_sequences=2, kv_gigabytes=0.01))
        loop.start()
        settings = ServerSettings(conversations=directory)
        names = ServedModel(("jar",), tokenizer, loop.engine.max_positions, served.config.vocab_size, "jar")
        transport = httpx.ASGITransport(create_app(Service(loop, names, settings)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
        loop.drain(10)

    return serve


async def ask(client: httpx.AsyncClient, messages: list[dict[str, str]], **fields: Any) -> httpx.Response:
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, **fields}
    return await client.post("/v1/chat/completions", json=body)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def cached(response: httpx.Response) -> int:
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_outlives_the_server(serving: Callable[..., Any], tmp_path: Path, stream: bool) -> None:
    async def run() -> None:
        first = [SYSTEM, {"role": "user", "content": "The jar?"}]
        async with serving() as client:
            answer = said(await ask(client, first))
            kept = await ask(client, first, conversation="jars", stream=stream)
            assert kept.status_code == 200
        assert [path.name for path in (tmp_path / "kept").iterdir()] == ["jars.leyden"]
        second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
        async with serving() as client:
            anew = await ask(client, second)
            assert cached(anew) == 0
        async with serving() as client:
            goes_on = await ask(client, second, conversation="jars")
            assert cached(goes_on) >= 256
            assert said(goes_on) == said(anew)

    asyncio.run(run())


def test_what_cannot_go_on_is_refused(
    serving: Callable[..., Any], make_model: Callable[..., HybridLM], tmp_path: Path
) -> None:
    messages = [SYSTEM, {"role": "user", "content": "The jar?"}]
    path = tmp_path / "kept" / "jars.leyden"

    async def refused(words: str, served: HybridLM | None = None, **fields: Any) -> None:
        async with serving(**({"served": served} if served else {})) as client:
            response = await ask(client, messages, **{"conversation": "jars", **fields})
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]

    async def run() -> None:
        async with serving() as client:
            said(await ask(client, messages, conversation="jars"))
        await refused("another model", make_model(num_hidden_layers=3, layer_types=["linear_attention"] * 3))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        await refused("torn")
        path.write_bytes(whole)
        for name in ("../jars", "a/b", "", "a" * 65, "a.b"):
            await refused("conversation", conversation=name)
        await refused("one answer", n=2)
        (tmp_path / "file").touch()
        async with serving(directory=tmp_path / "file") as client:
            response = await ask(client, messages, conversation="jars")
        assert response.status_code == 500 and "was not saved" in response.text
        async with serving(directory=None) as client:
            response = await ask(client, messages, conversation="jars")
        assert response.status_code == 400 and "keeps no conversations" in response.text

    asyncio.run(run())


def test_work_between_steps(model: HybridLM, tokenizer: Tokenizer) -> None:
    async def run() -> None:
        loop = EngineLoop(Engine(model, tokenizer, max_sequences=2, kv_gigabytes=0.01))
        loop.start()
        assert await loop.between_steps(lambda engine: engine is loop.engine)
        with pytest.raises(ZeroDivisionError):
            await loop.between_steps(lambda engine: 1 / 0)
        given_up = asyncio.ensure_future(loop.between_steps(lambda engine: None))
        given_up.cancel()
        assert await loop.between_steps(lambda engine: engine.busy) is False
        loop.drain(5)
        assert await loop.between_steps(lambda engine: "after the end") == "after the end"

    asyncio.run(run())
