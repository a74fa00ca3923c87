"""Random load on an engine with hardly any memory: nothing leaks, and every answer is the one it gives alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from leyden.model import HybridLM, Pools
from leyden.serve import Engine, Sampling
from leyden.serve.completion import Completion
from leyden.serve.memory import audit
from leyden.serve.request import Delta, QueueFullError, Request
from leyden.tokenizer import Tokenizer

_GIGABYTE = 1 << 30
_PAGES, _SNAPSHOTS, _SEQUENCES = 8, 5, 6
"""So few pages that sequences have to make room for others, and texts that were read are forgotten."""


@dataclass
class Load:
    """Requests that come at random moments, half of which are cancelled at random moments.

    Args:
        engine: with few pages.
        count: how many come.
        seed: of everything random.
    """

    engine: Engine
    count: int
    seed: int
    answers: dict[str, list[Completion]] = field(default_factory=dict)
    cancelled: int = 0

    def run(self) -> list[Request]:
        """All of it; the requests that were answered."""
        chance = random.Random(self.seed)
        vocabulary = self.engine.model.config.vocab_size
        shared = [[chance.randrange(vocabulary) for _ in range(900)] for _ in range(4)]
        requests = [_request(chance, shared, vocabulary, number) for number in range(self.count)]
        waiting = requests[::-1]
        leaves_after = {request.id: chance.randrange(40) for request in requests if chance.random() < 0.5}
        deltas: dict[str, list[Delta]] = {}
        steps = 0
        while waiting or deltas:
            for _ in range(chance.choice((0, 0, 1, 3))):
                self._send(waiting, deltas)
            for id in [id for id in deltas if id in leaves_after]:
                leaves_after[id] -= 1
                if leaves_after[id] < 0:
                    self.engine.abort(id)
                    del deltas[id]
                    self.cancelled += 1
            for delta in self.engine.step():
                deltas[delta.request].append(delta)
                self._take(delta.request, deltas)
            steps += 1
            if steps % 20 == 0:
                audit(self.engine.memory)
        while self.engine.busy:
            self.engine.step()
        return [request for request in requests if request.id in self.answers]

    def _send(self, waiting: list[Request], deltas: dict[str, list[Delta]]) -> None:
        if not waiting:
            return
        request = waiting.pop()
        try:
            self.engine.add(request)
        except QueueFullError:
            waiting.append(request)
        else:
            deltas[request.id] = []

    def _take(self, id: str, deltas: dict[str, list[Delta]]) -> None:
        """The answer to a request whose completions have all ended."""
        by_index: dict[int, list[Delta]] = {}
        for delta in deltas[id]:
            by_index.setdefault(delta.index, []).append(delta)
        if sum(delta.finish_reason is not None for delta in deltas[id]) == _num_completions(id):
            self.answers[id] = Completion.of_request((), [by_index[index] for index in sorted(by_index)])
            del deltas[id]


def _num_completions(id: str) -> int:
    return int(id.split("n=")[1])


def _request(chance: random.Random, shared: list[list[int]], vocabulary: int, number: int) -> Request:
    """A prompt that begins as others do, often one that ends where a page does, and one of many ways to go on."""
    beginning = chance.choice(shared)[: chance.choice((0, 3, 225, 240, 256, 300, 485, 512, 600, 740))]
    prompt = beginning + [chance.randrange(vocabulary) for _ in range(chance.randrange(1, 30))]
    sampling = Sampling(
        max_tokens=chance.randrange(1, 32),
        temperature=chance.choice((0.0, 0.0, 1.0, 1.5)),
        seed=chance.randrange(1000),
        top_k=chance.choice((None, None, 20)),
        repetition_penalty=chance.choice((1.0, 1.0, 1.3)),
        frequency_penalty=chance.choice((0.0, 0.0, 0.5)),
        stop=chance.choice(((), (), ("e", "ning"))),
        ignore_eos=chance.random() < 0.5,
        n=chance.choice((1, 1, 1, 3)),
    )
    return Request(prompt, sampling, f"{number} n={sampling.n}", priority=chance.choice((0, 0, 1)))


def _gigabytes(model: HybridLM) -> dict[str, float]:
    state, page = Pools.bytes_of(model.config, model.lm_head.weight.dtype)
    return {
        "kv_gigabytes": (_PAGES + 0.5) * page / _GIGABYTE,
        "cache_gigabytes": (_SNAPSHOTS + 0.5) * state / _GIGABYTE,
        "swap_gigabytes": _SEQUENCES * (state + 5 * page) / _GIGABYTE,
    }


def _soak(model: HybridLM, tokenizer: Tokenizer, count: int, seed: int) -> None:
    engine = Engine(model, tokenizer, max_sequences=_SEQUENCES, max_queue=8, step_tokens=512, **_gigabytes(model))
    load = Load(engine, count, seed)
    answered = load.run()
    audit(engine.memory)
    usage, statistics = engine.memory.usage, engine.statistics
    assert (usage.states_used, usage.pages_used, usage.swap_bytes_used) == (0, 0, 0)
    assert len(answered) + load.cancelled == count
    assert load.cancelled > count / 5
    assert statistics.preemptions > 0 and usage.evictions > 0 and statistics.refused > 0  # else it was no load
    assert statistics.cache_used_tokens > 0
    alone = Engine(model, tokenizer, max_sequences=3, cache_gigabytes=0, kv_gigabytes=0.01)
    for request in answered:
        expected = alone.generate([request.tokens], request.sampling)
        found = load.answers[request.id]
        assert [(c.tokens, c.text, c.finish_reason) for c in found] == [
            (c.tokens, c.text, c.finish_reason) for c in expected
        ], request


def test_random_load(model: HybridLM, tokenizer: Tokenizer) -> None:
    _soak(model, tokenizer, 40, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_thousand_requests(make_model: Callable[..., HybridLM], tokenizer: Tokenizer, dtype: str) -> None:
    _soak(make_model().to(getattr(torch, dtype)), tokenizer, 2000, seed=2)
