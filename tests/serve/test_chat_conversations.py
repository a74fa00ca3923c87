"""Chats over HTTP: a turn reads what is new alone; one that names a conversation does so after a restart, too."""

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
    async def serve(
        served: HybridLM = model, directory: Path | None = tmp_path / "kept", **more: Any
    ) -> AsyncGenerator[Any, None]:
        loop = EngineLoop(Engine(served, tokenizer, max_sequences=2, kv_gigabytes=0.01))
        loop.start()
        settings = ServerSettings(conversations=directory, **more)
        names = ServedModel(("jar",), tokenizer, loop.engine.max_positions, served.config.vocab_size, "jar")
        service = Service(loop, names, settings)
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            client.__dict__["service"] = service  # for the tests
            yield client
        loop.drain(10)
        await service.background.finish(30)

    return serve


async def ask(client: httpx.AsyncClient, messages: list[dict[str, str]], **fields: Any) -> httpx.Response:
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, **fields}
    return await client.post("/v1/chat/completions", json=body)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def cached(response: httpx.Response) -> int:
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


async def rest(client: httpx.AsyncClient) -> None:
    """Until all that is done behind answers is done, and all that is read ahead is read."""
    service = client.__dict__["service"]
    await service.background.finish(30)
    await service.loop.between_steps(lambda engine: engine.rest())


LONG = {"max_tokens": 400, "temperature": 1, "seed": 5, "ignore_eos": True}


async def long_turn(client: httpx.AsyncClient, tokenizer: Tokenizer, **fields: Any) -> tuple[list[dict], list[int]]:
    """A first turn, and its text as the second one will send it: other tokens than were drawn, and more pages."""
    first = [SYSTEM, {"role": "user", "content": "The jar?"}]
    response = await ask(client, first, **LONG, **fields)
    messages = [*first, {"role": "assistant", "content": said(response)}]
    tokens = tokenizer.encode_chat(messages, add_generation_prompt=False)
    usage = response.json()["usage"]
    assert len(tokens) > usage["total_tokens"] + 100
    assert len(tokens) // 256 > usage["prompt_tokens"] // 256
    return messages, tokens


def test_the_next_turn_reads_what_is_new(serving: Callable[..., Any], tokenizer: Tokenizer) -> None:
    """Half of what this model draws is no text, and comes back as other tokens."""

    async def run() -> None:
        async with serving() as client:
            messages, tokens = await long_turn(client, tokenizer)
            await rest(client)
            second = await ask(client, [*messages, {"role": "user", "content": "And now?"}])
            assert cached(second) >= len(tokens) // 256 * 256

    asyncio.run(run())


def test_a_conversation_is_saved_with_its_answer(
    serving: Callable[..., Any], model: HybridLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "kept" / "no-key" / "jars.leyden"

    async def run() -> None:
        async with serving() as client:
            other = asyncio.create_task(ask(client, [SYSTEM], max_tokens=1500, n=8, ignore_eos=True))
            messages, tokens = await long_turn(client, tokenizer, conversation="jars")
            await asyncio.sleep(0.3)
            assert not other.done() and not path.exists()  # the engine has other things to do than to read ahead
            other.cancel()
            await rest(client)
            kept = Engine(model, tokenizer, kv_gigabytes=0.01).load_conversation(path)
            assert kept.tokens[: len(tokens)] == tokens
            assert kept.restored_tokens >= len(tokens) // 256 * 256
            assert kept.messages == messages
            # Turns in quick succession: the last one is what is kept.
            for _ in range(3):
                messages.append({"role": "user", "content": "And?"})
                answer = said(await ask(client, messages, conversation="jars"))
                messages.append({"role": "assistant", "content": answer})
            await rest(client)
            assert Engine(model, tokenizer, kv_gigabytes=0.01).load_conversation(path).messages == messages

    asyncio.run(run())


def test_a_server_that_never_rests_saves_what_there_is(
    serving: Callable[..., Any], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leyden.serve.http.conversations._PATIENCE_SECONDS", 0.2)

    async def run() -> None:
        async with serving() as client:
            other = asyncio.create_task(ask(client, [SYSTEM], max_tokens=1500, n=8, ignore_eos=True))
            await long_turn(client, tokenizer, conversation="jars")
            await client.__dict__["service"].background.finish(30)
            assert not other.done()
            assert (tmp_path / "kept" / "no-key" / "jars.leyden").exists()
            other.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_outlives_the_server(serving: Callable[..., Any], tmp_path: Path, stream: bool) -> None:
    async def run() -> None:
        first = [SYSTEM, {"role": "user", "content": "The jar?"}]
        async with serving() as client:
            answer = said(await ask(client, first))
            kept = await ask(client, first, conversation="jars", stream=stream)
            assert kept.status_code == 200
        assert [path.name for path in (tmp_path / "kept" / "no-key").iterdir()] == ["jars.leyden"]
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
    serving: Callable[..., Any],
    make_model: Callable[..., HybridLM],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages = [SYSTEM, {"role": "user", "content": "The jar?"}]
    path = tmp_path / "kept" / "no-key" / "jars.leyden"

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
            said(await ask(client, messages, conversation="jars"))
        assert "file/no-key cannot be made" in caplog.text
        async with serving(directory=None) as client:
            response = await ask(client, messages, conversation="jars")
        assert response.status_code == 400 and "keeps no conversations" in response.text

    asyncio.run(run())


def test_keys_see_nothing_of_each_other(serving: Callable[..., Any], tmp_path: Path) -> None:
    first = [SYSTEM, {"role": "user", "content": "The jar?"}]
    kept = tmp_path / "kept"
    keys = ("alice", "bob")

    async def run() -> None:
        async with serving(api_keys=keys) as client:

            async def cached_of(key: str, **fields: Any) -> int:
                client.headers["authorization"] = f"Bearer {key}"
                response = await ask(client, first, **fields)
                said(response)
                await rest(client)
                return cached(response)

            assert await cached_of("alice", conversation="jars") == 0
            (theirs,) = kept.glob("*/jars.leyden")
            content = theirs.read_bytes()
            assert await cached_of("alice") >= 256
            assert await cached_of("bob") == 0
            assert await cached_of("bob", conversation="jars") >= 256
            assert await cached_of("bob", cache_salt="of one project") == 0
            assert await cached_of("bob", cache_salt="of one project") >= 256
            assert len(list(kept.glob("*/jars.leyden"))) == 2 and theirs.read_bytes() == content
            for path in kept.rglob("*"):
                assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
                assert not any(key in path.name for key in keys)
        async with serving(api_keys=keys, shared_cache=True) as client:
            client.headers["authorization"] = "Bearer alice"
            said(await ask(client, first))
            client.headers["authorization"] = "Bearer bob"
            assert cached(await ask(client, first)) >= 256

    asyncio.run(run())


def test_the_oldest_conversations_make_room(
    serving: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = [SYSTEM, {"role": "user", "content": "The jar?"}]
    folder = tmp_path / "kept" / "no-key"

    async def kept_of(gigabytes: float, *names: str) -> set[str]:
        async with serving(conversations_gigabytes=gigabytes) as client:
            for name in names:
                said(await ask(client, first, conversation=name))
                await rest(client)
            assert not client.__dict__["service"].conversations._turns  # nothing is held for one that nobody works on
        return {path.stem for path in folder.iterdir()}

    async def run() -> None:
        assert await kept_of(1, "a", "b") == {"a", "b"}
        size = (folder / "a.leyden").stat().st_size
        assert await kept_of(2.5 * size / 2**30, "c", "a", "d") == {"a", "d"}
        assert await kept_of(size / 2 / 2**30, "e") == set()
        assert "--conversations-gigabytes" in caplog.text

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
