"""An exception of any type, wherever it is raised, is the answer of the request that met it; the server goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from leyden.model import HybridLM
from leyden.serve import Engine, Sampling
from leyden.serve.http import Service, create_app
from leyden.serve.loop import EngineLoop
from leyden.serve.request import Delta, Request
from leyden.tokenizer import Tokenizer


class Panic(BaseException):
    """As Rust libraries raise."""


KINDS = (StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit, MemoryError, Panic)
PLACES = {
    "tokenizer": "leyden.tokenizer.Tokenizer.encode",
    "service": "leyden.serve.http.service.Service.require",
    "writer": "leyden.serve.http.completions._Writer.write",
    "metrics": "leyden.serve.http.metrics.Watch.saw",
    "response": "leyden.serve.http.completions._CompletionAnswer.complete",
}


def answers(app: Any, *bodies: dict) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            posts = [asyncio.wait_for(client.post("/v1/completions", json=body), 10) for body in bodies]
            return list(await asyncio.gather(*posts))

    return asyncio.run(run())


@pytest.fixture
def app(make_service: Callable[..., Service]) -> Any:
    return create_app(make_service())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_before_and_behind_the_engine(app: Any, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise kind("why")

    for place in PLACES.values():
        with monkeypatch.context() as patch:
            patch.setattr(place, fails)
            (whole, stream) = answers(app, {"prompt": "x"}, {"prompt": "x", "stream": True})
        for response in (whole, stream) if "complete" not in place else (whole,):
            assert response.status_code == 500 or "internal_error" in response.text, place
            assert "why" not in response.text
    assert answers(app, {"prompt": "x"})[0].status_code == 200


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_in_the_engines_thread(
    model: HybridLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """Between steps whoever asked is told; in a step, which may have left anything torn, all are, and none hangs."""

    def fails(*_: object, **__: object) -> None:
        raise kind("why")

    loop = EngineLoop(Engine(model, tokenizer, kv_gigabytes=0.001, cache_gigabytes=0, swap_gigabytes=0))
    monkeypatch.setattr(loop.engine, "step", fails)

    async def run() -> list[Delta]:
        loop.start()
        with pytest.raises((RuntimeError, MemoryError), match="why"):
            await asyncio.wait_for(loop.between_steps(fails), 10)
        assert loop.alive
        return [delta async for delta in loop.submit(Request([5], Sampling(), "a"))]

    (delta,) = asyncio.run(asyncio.wait_for(run(), 20))
    assert delta.finish_reason == "error" and kind.__name__ in (delta.error or "")
    assert not loop.alive and not loop.ready
