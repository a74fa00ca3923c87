"""Random load on ``leyden serve``: clients that come and go at random moments leave nothing behind."""

import asyncio
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from leyden.bench.serve.http import ServerProcess
from leyden.checkpoint import save
from leyden.model import HybridLM, Pools
from leyden.serve import Engine, Sampling
from leyden.tokenizer import Tokenizer

_GIGABYTE = 1 << 30
_SECONDS = 120


def _bodies(count: int, vocabulary: int) -> list[dict]:
    chance = random.Random(7)
    shared = [[chance.randrange(vocabulary) for _ in range(600)] for _ in range(3)]
    bodies = []
    for _ in range(count):
        beginning = chance.choice(shared)[: chance.choice((0, 100, 240, 256, 480, 600))]
        prompt = beginning + [chance.randrange(vocabulary) for _ in range(chance.randrange(1, 30))]
        body = {"model": "soak", "prompt": prompt, "max_tokens": chance.randrange(1, 30), "stream": True}
        body |= {"temperature": chance.choice((0.0, 1.0)), "seed": chance.randrange(1000)}
        bodies.append(body)
    return bodies


async def _read(client: httpx.AsyncClient, body: dict, events: int | None) -> str | None:
    """The text; None where the client has left after so many ``events``, or was refused."""
    text, seen = "", 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code in (429, 503):
            return None
        assert response.status_code == 200, await response.aread()
        if events == 0:
            return None
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                text += json.loads(line[6:])["choices"][0]["text"]
                seen += 1
                if seen == events:
                    return None
    raise AssertionError("a stream ended without its end")


async def _load(url: str, bodies: list[dict]) -> list[str | None]:
    chance = random.Random(8)
    leaves = [chance.randrange(12) if chance.random() < 0.5 else None for _ in bodies]
    at_once = asyncio.Semaphore(20)
    async with httpx.AsyncClient(base_url=url, timeout=_SECONDS, limits=httpx.Limits(max_connections=20)) as client:

        async def one(body: dict, events: int | None) -> str | None:
            async with at_once:
                return await _read(client, body, events)

        return list(await asyncio.gather(*map(one, bodies, leaves)))


def _gauges(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=_SECONDS).text
    return {name: float(value) for name, value in re.findall(r"^(leyden_\w+)(?:\{[^}]*\})? (\S+)$", text, re.M)}


async def _rest(url: str) -> dict[str, float]:
    """The gauges, once nothing runs any more."""
    for _ in range(_SECONDS * 10):
        gauges = _gauges(url)
        if not gauges["leyden_state_slots_used"] and not gauges["leyden_requests_queued"]:
            return gauges
        await asyncio.sleep(0.1)
    raise AssertionError(f"slots are still used: {gauges}")


def _soak(model: HybridLM, tokenizer: Tokenizer, directory: Path, count: int) -> None:
    save(model, tokenizer, directory)
    state, page = Pools.bytes_of(model.config, model.lm_head.weight.dtype)
    memory = {"kv": 8.5 * page, "cache": 5.5 * state, "swap": 6 * (state + 5 * page)}
    options = [part for name, size in memory.items() for part in (f"--{name}-gigabytes", f"{size / _GIGABYTE:.9f}")]
    command = ["serve", str(directory), "--served-model-name", "soak", "--max-sequences", "6", *options]
    bodies = _bodies(count, model.config.vocab_size)
    with ServerProcess.of_leyden(command, "soak", threads=1) as server:
        texts = asyncio.run(_load(server.url, bodies))
        gauges = asyncio.run(_rest(server.url))
    for gauge in ("requests_queued", "requests_running", "requests_swapped", "state_slots_used", "kv_pages_used"):
        assert gauges[f"leyden_{gauge}"] == 0, gauge
    alone = Engine(model, tokenizer, max_sequences=1, cache_gigabytes=0, kv_gigabytes=0.01)
    answered = [(body, text) for body, text in zip(bodies, texts, strict=True) if text is not None]
    assert count / 3 < len(answered) < count * 4 / 5
    for body, text in answered:
        sampling = Sampling(**{name: body[name] for name in ("max_tokens", "temperature", "seed")})
        assert text == alone.generate([body["prompt"]], sampling)[0].text


@pytest.mark.slow
def test_clients_that_leave(model: HybridLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    _soak(model, tokenizer, tmp_path / "model", 40)


@pytest.mark.slow
def test_many_clients_that_leave(make_model: Callable[..., HybridLM], tokenizer: Tokenizer, tmp_path: Path) -> None:
    _soak(make_model(), tokenizer, tmp_path / "model", 400)
