"""The engine in its thread: deltas reach asyncio, readers may leave, and the end is orderly."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.serve import Delta, Engine, QueueFullError, Request, Sampling
from leyden.serve import loop as engine_loop
from leyden.serve.loop import EngineLoop
from leyden.serve.memory import audit
from leyden.serve.sampling import Grammar
from leyden.tokenizer import Tokenizer

LONG = Sampling(max_tokens=100_000, temperature=0, ignore_eos=True)
SHORT = Sampling(max_tokens=8, seed=1, n=2, ignore_eos=True)


@pytest.fixture
def loop(model: HybridLM, tokenizer: Tokenizer) -> Iterator[EngineLoop]:
    loop = EngineLoop(Engine(model, tokenizer, max_sequences=4, max_queue=2))
    loop.start()
    yield loop
    loop.drain(0)
    assert not loop._thread.is_alive()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 30)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


async def collect(loop: EngineLoop, request: Request) -> list[Delta]:
    return [delta async for delta in loop.submit(request)]


def test_deltas_are_those_of_the_engine(loop: EngineLoop, model: HybridLM, tokenizer: Tokenizer) -> None:
    async def work() -> None:
        prompts = [[1, 2, 3], [4] * 300, [5, 6]]
        found = await asyncio.gather(*(collect(loop, Request(p, SHORT, f"{i}")) for i, p in enumerate(prompts)))
        expected = Engine(model, tokenizer).generate(prompts, SHORT)
        for number, deltas in enumerate(found):
            for index in range(2):
                tokens = [token for delta in deltas if delta.index == index for token in delta.tokens]
                assert tuple(tokens) == expected[2 * number + index].tokens
            assert sum(delta.finish_reason == "length" for delta in deltas) == 2

    run(work())


def test_what_cannot_be_answered_is_refused_at_once(loop: EngineLoop) -> None:
    async def work() -> None:
        with pytest.raises(UserError, match="vocabulary"):
            loop.submit(Request([9999], SHORT, "wrong"))
        streams = [loop.submit(Request([1], LONG, f"{number}")) for number in range(4)]
        await until(lambda: loop.statistics.running == 4)
        streams += [loop.submit(Request([1], LONG, f"{number}")) for number in (4, 5)]
        with pytest.raises(QueueFullError):
            loop.submit(Request([1], LONG, "6"))
        for stream in streams:
            await stream.aclose()
        await until(lambda: loop.statistics.running == 0)
        assert (await collect(loop, Request([1], SHORT, "6")))[-1].finish_reason == "length"

    run(work())


def test_a_reader_that_leaves_frees_its_memory(loop: EngineLoop) -> None:
    async def work() -> None:
        stream = loop.submit(Request([1, 2], LONG, "a"))
        assert (await anext(stream)).request == "a"
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            while True:
                await task
                task = asyncio.create_task(anext(stream))
        await until(lambda: loop.statistics.states_used == 0 and not loop.engine.busy)
        assert loop.statistics.finished == Counter(aborted=1)
        audit(loop.engine.memory)
        sleeping = loop.statistics.steps
        await asyncio.sleep(0.05)
        assert loop.statistics.steps == sleeping

    run(work())


def test_an_idle_engine_wakes_at_once(loop: EngineLoop) -> None:
    async def work() -> None:
        best = 1.0
        for number in range(5):
            await asyncio.sleep(0.02)
            started = time.perf_counter()
            await anext(loop.submit(Request([1], Sampling(max_tokens=1), f"{number}")))
            best = min(best, time.perf_counter() - started)
        assert best < 0.1

    run(work())


def test_an_event_loop_that_is_gone_ends_its_requests(loop: EngineLoop) -> None:
    async def leave() -> None:
        await anext(loop.submit(Request([1], LONG, "a")))

    run(leave())
    deadline = time.monotonic() + 20
    while loop.statistics.states_used and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loop.statistics.states_used == 0


def test_a_drain_lets_requests_end_and_takes_no_more(model: HybridLM) -> None:
    async def work() -> None:
        loop = EngineLoop(Engine(model))
        with pytest.raises(QueueFullError, match="not running"):
            loop.submit(Request([1], SHORT, "early"))
        loop.start()
        short = asyncio.create_task(collect(loop, Request([1], SHORT, "short")))
        long = asyncio.create_task(collect(loop, Request([1], LONG, "long")))
        await until(lambda: loop.statistics.running > 0 or loop.statistics.finished["length"] > 0)
        await asyncio.to_thread(loop.drain, 1.0)
        assert [delta.finish_reason for delta in (await short)][-1] == "length"
        assert (await long)[-1].finish_reason == "aborted"
        assert loop.alive and not loop.ready
        assert loop.engine.memory.usage.states_used == 0
        with pytest.raises(QueueFullError):
            loop.submit(Request([1], SHORT, "late"))

    run(work())


def test_a_fault_ends_every_request_and_is_seen(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        loop = EngineLoop(Engine(model))
        loop.start()
        stream = loop.submit(Request([1], LONG, "a"))
        await anext(stream)

        def fails(decodes: list, prefills: list) -> torch.Tensor:
            raise RuntimeError("a wrong index")

        monkeypatch.setattr(loop.engine._steps._runner, "run", fails)
        last = [delta async for delta in stream][-1]
        assert last.finish_reason == "error"
        assert last.error is not None and "the engine has stopped" in last.error
        assert not loop.alive and not loop.ready
        loop.drain(0)

    run(work())


def test_grammars_wait_in_a_line_of_their_own(loop: EngineLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded; whoever leaves it gives up the place; and nothing else waits behind them."""
    monkeypatch.setattr(engine_loop, "_MAX_GRAMMARS", 3)
    begun: list[Grammar | None] = []
    released, prepare = threading.Event(), loop.engine.prepare

    def slowly(sampling: Sampling) -> object:
        if sampling.grammar is None:
            return prepare(sampling)
        begun.append(sampling.grammar)
        return released.wait(30)

    monkeypatch.setattr(loop.engine, "prepare", slowly)

    def of(number: int) -> Sampling:
        return Sampling(grammar=Grammar(regex=f"a{{{number}}}"), max_tokens=9)

    async def work() -> None:
        waiting = [asyncio.create_task(loop.prepare(of(number))) for number in (1, 2, 3)]
        await until(lambda: len(begun) == 1)
        with pytest.raises(QueueFullError, match="3 grammars are being compiled"):
            await loop.prepare(of(4))
        assert (await collect(loop, Request([1], SHORT, "plain")))[-1].finish_reason == "length"
        waiting[1].cancel()
        await asyncio.gather(waiting[1], return_exceptions=True)
        last = asyncio.create_task(loop.prepare(of(5)))
        await asyncio.sleep(0)
        released.set()
        await asyncio.gather(waiting[0], waiting[2], last)
        assert begun == [of(number).grammar for number in (1, 3, 5)]

    run(work())
