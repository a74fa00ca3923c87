"""The official ``openai`` client against a real server: over the scripted engine, and over a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest
import torch

from leyden.model import HybridLM
from leyden.serve import Engine, Sampling
from leyden.serve.loop import EngineLoop
from leyden.tokenizer import Tokenizer

Serve = Callable[..., str]
Talk = Callable[..., openai.OpenAI]
MESSAGES: list = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "The tower?"}]
MEMORY = {"kv_gigabytes": 0.01, "cache_gigabytes": 0.01, "swap_gigabytes": 0.01, "max_sequences": 4}


@pytest.fixture
def talk() -> Iterator[Talk]:
    clients = []

    def make(url: str, key: str = "none") -> openai.OpenAI:
        clients.append(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_a_completion_whole_and_streamed(serve: Serve, talk: Talk) -> None:
    client = talk(serve())
    options: dict = {"model": "jar", "prompt": "x", "max_tokens": 12, "n": 2, "logprobs": 2}
    whole = client.completions.create(**options)
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


def test_a_chat_whole_and_streamed(serve: Serve, talk: Talk) -> None:
    client = talk(serve())
    options: dict = {"model": "jar", "messages": MESSAGES, "max_tokens": 99, "stop": "keeps", "logprobs": True}
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "0: The jar ☂ "
    assert choice.finish_reason == "stop"
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == choice.message.content


def test_errors_are_the_clients_own_kinds(serve: Serve, talk: Talk, loop) -> None:
    client = talk(serve(api_keys=("right",)), "right")
    with pytest.raises(openai.AuthenticationError):
        talk(str(client.base_url).removesuffix("/v1/"), "wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="jar", prompt=[1] * 600)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="'best_of' is not supported") as caught:
        client.completions.create(model="jar", prompt="x", best_of=3)
    assert caught.value.param == "best_of"
    loop.fail_after = 2
    stream = client.completions.create(model="jar", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="out of memory"):
        list(stream)
    loop.room = 0
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="jar", prompt="x")
    loop.alive = False
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="jar", prompt="x")
    assert caught.value.status_code == 503


def test_models(serve: Serve, talk: Talk) -> None:
    client = talk(serve())
    assert [model.id for model in client.models.list()] == ["jar", "lightning"]
    assert client.models.retrieve("jar").owned_by == "leyden"


@pytest.fixture
def real_loop(model: HybridLM, tokenizer: Tokenizer) -> Iterator[EngineLoop]:
    loop = EngineLoop(Engine(model, tokenizer, **MEMORY))
    loop.start()
    yield loop
    loop.drain(0)


def test_a_real_engine_says_what_it_says_without_a_server(
    real_loop: EngineLoop, serve: Serve, talk: Talk, model: HybridLM, tokenizer: Tokenizer
) -> None:
    serve.loop = real_loop
    client = talk(serve())
    offline = Engine(model, tokenizer, **MEMORY)
    prompts = ["The lightning struck", "Grüße ☂", "A jar"]
    expected = offline.generate(prompts, Sampling(max_tokens=12, temperature=0))
    answer = client.completions.create(model="jar", prompt=prompts, max_tokens=12, temperature=0)
    assert [choice.text for choice in answer.choices] == [completion.text for completion in expected]
    drawn = client.completions.create(model="jar", prompt="A jar", max_tokens=12, seed=5, n=3)
    again = client.completions.create(model="jar", prompt="A jar", max_tokens=12, seed=5, n=3, stream=True)
    pieces = [chunk.choices[0] for chunk in again]
    for choice in drawn.choices:
        assert "".join(piece.text for piece in pieces if piece.index == choice.index) == choice.text


def test_lm_evals_requests_get_what_teacher_forcing_gives(
    real_loop: EngineLoop, serve: Serve, talk: Talk, model: HybridLM, tokenizer: Tokenizer
) -> None:
    serve.loop = real_loop
    client = talk(serve())
    prompts = [tokenizer.encode("The lightning struck the old tower."), tokenizer.encode("A jar keeps")]
    answer = client.completions.create(
        model="jar", prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        expected = model(torch.tensor([prompt])).detach()[0].float().log_softmax(-1)
        told = choice.logprobs.token_logprobs[1:-1]
        wanted = [float(row[token]) for row, token in zip(expected, prompt[1:], strict=False)]
        assert told == pytest.approx(wanted, abs=1e-4)
        for top, row in zip(choice.logprobs.top_logprobs[1:-1], expected, strict=False):
            assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)


def test_the_second_turn_of_a_real_chat_reads_its_new_part_alone(
    real_loop: EngineLoop, serve: Serve, talk: Talk
) -> None:
    serve.loop = real_loop
    client = talk(serve())
    turns: list = [{"role": "user", "content": "The lightning struck the old tower. " * 20}]
    first = client.chat.completions.create(model="jar", messages=turns, max_tokens=4, temperature=0)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "Why?"}]
    second = client.chat.completions.create(model="jar", messages=turns, max_tokens=4, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens >= 256
    assert second.usage.prompt_tokens_details.cached_tokens % 256 == 0
