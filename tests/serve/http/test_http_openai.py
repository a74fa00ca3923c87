"""The official ``openai`` client against a real server."""

from collections.abc import Callable, Iterator

import openai
import pytest

Serve = Callable[..., str]


@pytest.fixture
def talk() -> Iterator[Callable[[str], openai.OpenAI]]:
    clients = []

    def make(url: str, key: str = "none") -> openai.OpenAI:
        clients.append(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=10))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_a_completion_whole_and_streamed(serve: Serve, talk: Callable[..., openai.OpenAI]) -> None:
    client = talk(serve())
    whole = client.completions.create(model="jar", prompt="x", max_tokens=12, n=2, logprobs=2)
    options = {"model": "jar", "prompt": "x", "max_tokens": 12, "n": 2, "logprobs": 2}
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        pieces = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert [token for piece in pieces for token in piece.logprobs.tokens] == choice.logprobs.tokens
        assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
