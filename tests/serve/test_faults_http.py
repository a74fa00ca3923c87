"""A step that fails, behind the real application: who asked for too much is told, and the others get their answers."""

import asyncio
from typing import Any

import httpx
import pytest
import torch

from leyden.model import HybridLM
from leyden.serve import Engine
from leyden.serve.http import ServedModel, ServerSettings, Service, create_app
from leyden.serve.loop import EngineLoop
from leyden.tokenizer import Tokenizer


def test_a_step_out_of_memory(model: HybridLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, tokenizer, kv_gigabytes=0.01)
    run = engine._steps._runner.run

    def fails(decodes: list, prefills: list) -> torch.Tensor:
        if any(len(reading.tokens) > 500 for reading in prefills):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return run(decodes, prefills)

    monkeypatch.setattr(engine._steps._runner, "run", fails)
    names = ServedModel(("jar",), tokenizer, engine.max_positions, model.config.vocab_size, "jar")
    service = Service(EngineLoop(engine), names, ServerSettings())

    async def ask(client: httpx.AsyncClient, prompt: list[int], **fields: Any) -> httpx.Response:
        body = {"prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True, **fields}
        return await client.post("/v1/completions", json=body)

    async def all_of_them() -> tuple[list[httpx.Response], httpx.Response, int]:
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asked = [ask(client, [5] * 20), ask(client, [6] * 600), ask(client, [7] * 600, stream=True)]
            asked.append(ask(client, [8] * 30))
            answers = await asyncio.gather(*asked)
            return answers, await ask(client, [5] * 20), (await client.get("/health")).status_code

    service.loop.start()  # pyright: ignore[reportAttributeAccessIssue]
    (short, long, stream, other), again, health = asyncio.run(all_of_them())
    service.loop.drain(10)
    assert long.status_code == 500
    assert "ran out of memory while it read the prompt of 600 tokens" in long.json()["error"]["message"]
    assert "Traceback" not in long.text
    assert stream.status_code == 200 and "ran out of memory" in stream.text and "[DONE]" in stream.text
    assert [answer.status_code for answer in (short, other, again)] == [200, 200, 200]
    assert short.json()["choices"] == again.json()["choices"]
    assert health == 200
    assert engine.statistics.finished["error"] == 2
