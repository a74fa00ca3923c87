"""Adapters are models to clients: listed, asked for by name, and never mixed up in the prefix cache."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from leyden.serve.http import create_app
from leyden.serve.request import adapter_of


@pytest.fixture
def ask(make_service: Any, loop: Any) -> Any:
    service = make_service()
    app = create_app(replace(service, model=replace(service.model, adapters=("red", "blue"))))

    async def send(method: str, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as session:
            return await session.request(method, path, **options)

    return send


def test_they_are_listed_with_their_model(ask: Any) -> None:
    cards = asyncio.run(ask("GET", "/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("jar", None),
        ("lightning", None),
        ("red", "jar"),
        ("blue", "jar"),
    ]


@pytest.mark.parametrize("name", ["jar", "red", "blue"])
def test_requests_choose_by_name(ask: Any, loop: Any, name: str) -> None:
    body = {"model": name, "prompt": "The jar", "max_tokens": 2, "cache_salt": "blue\0"}
    answer = asyncio.run(ask("POST", "/v1/completions", json=body))
    chat = {"model": name, "messages": [{"role": "user", "content": "The jar?"}], "max_tokens": 2}
    said = asyncio.run(ask("POST", "/v1/chat/completions", json=chat))
    assert answer.json()["model"] == said.json()["model"] == name
    assert [adapter_of(request.salt) for request in loop.requests] == ["" if name == "jar" else name] * 2


def test_an_unknown_one_is_not_found(ask: Any) -> None:
    answer = asyncio.run(ask("POST", "/v1/completions", json={"model": "reed", "prompt": "x"}))
    assert answer.status_code == 404 and "did you mean 'red'" in answer.json()["error"]["message"]
