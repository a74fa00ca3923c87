"""An engine that gives its memory back between rollouts: all of it, and what it says to requests meanwhile."""

import asyncio
import contextlib
import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PAGE, HybridLM
from leyden.serve import Engine, QueueFullError, Request, Sampling
from leyden.serve.loop import EngineLoop
from leyden.serve.memory import plan

GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
SIZES = {"max_sequences": 4, "kv_gigabytes": 0.004, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}
PROMPTS = [[1, 2, 3], [7] * (PAGE + 9)]


def tensor_bytes() -> int:
    """Of all tensors that this process has."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) not in (torch.Tensor, torch.nn.Parameter):  # isinstance would wake lazy objects
            continue
        if thing.device.type == "cpu" and thing.layout == torch.strided:
            with contextlib.suppress(RuntimeError):  # other tests may have left tensors that only stand for some
                found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.parametrize("settings", [{"speculation": "draft"}, {"decoder": "torch", "speculation": "prompt"}])
def test_all_memory_is_freed_and_comes_back(model: HybridLM, settings: dict[str, str]) -> None:
    draft = copy.deepcopy(model) if settings.get("speculation") == "draft" else None
    before = tensor_bytes()
    engine = Engine(model, draft=draft, **SIZES, **settings)
    expected = [made.tokens for made in engine.generate(PROMPTS, GREEDY)]
    pools, held = engine.memory.pools, tensor_bytes() - before
    kept = (pools.slots, pools.pages, engine.memory.snapshots.slots)
    least = sum(memory.nbytes for memories in kept for memory in memories.values())
    assert held >= least > 1 << 20
    del pools, kept
    engine.release()
    engine.release()
    assert tensor_bytes() - before < held / 100
    engine.acquire()
    engine.acquire()
    assert tensor_bytes() - before >= least
    assert [made.tokens for made in engine.generate(PROMPTS, GREEDY)] == expected
    assert engine.statistics.prefill_tokens == 2 * sum(map(len, PROMPTS))  # nothing was remembered


def test_what_comes_in_between_is_refused_in_words(model: HybridLM, tmp_path: Path) -> None:
    engine = Engine(model, **SIZES)
    engine.release()
    reason = r"given its memory back \(release\) .*; call acquire\(\) first"
    for work in (
        lambda: engine.generate([[1]]),
        lambda: engine.stream([1]),
        lambda: engine.add(Request([1], GREEDY, "one")),
        lambda: engine.save_conversation(tmp_path / "one", [1]),
        lambda: engine.load_conversation(tmp_path / "one"),
    ):
        with pytest.raises(UserError, match=reason):
            work()
    engine.read_ahead([1] * PAGE)
    assert not engine.busy and engine.step() == []
    engine.acquire()
    assert engine.generate([[1]], GREEDY)[0].error is None


def test_requests_that_run_are_in_the_way(model: HybridLM) -> None:
    engine = Engine(model, **SIZES)
    engine.add(Request([1, 2], GREEDY, "one"))
    with pytest.raises(UserError, match=r"memory cannot be given back while 1 request runs: their states, keys"):
        engine.release()
    engine.step()
    engine.release(running="finish")
    assert [delta.finish_reason for delta in engine.step()][-1] == "length"
    engine.acquire()
    engine.add(Request([1, 2], GREEDY, "one"))
    engine.step()
    engine.release(running="abort")
    assert engine.busy and [delta.finish_reason for delta in engine.step()] == ["aborted"]
    assert not engine.busy


def test_weights_may_come_while_the_memory_is_away(make_model: Callable[..., HybridLM]) -> None:
    model, trained = make_model(), make_model()
    with torch.no_grad():
        trained.lm_head.weight.copy_(trained.lm_head.weight.flip(0))
    engine = Engine(model, **SIZES)
    engine.release()
    engine.update_weights(trained)
    assert engine.weights_version == 1
    engine.acquire()
    assert engine.generate(PROMPTS, GREEDY)[0].tokens == Engine(trained).generate(PROMPTS, GREEDY)[0].tokens
    engine.release()
    model.load_state_dict(make_model().state_dict())  # by a trainer of the engine's own model
    engine.acquire()
    assert engine.generate(PROMPTS, GREEDY)[1].tokens == Engine(make_model()).generate(PROMPTS, GREEDY)[1].tokens
    assert engine.weights_version == 2


def test_memory_that_is_gone_leaves_the_engine_released(model: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, **SIZES)
    engine.release()
    with monkeypatch.context() as patch:
        patch.setattr(plan, "free_bytes", lambda device: 1000)
        with pytest.raises(UserError, match=r"had \d\.\d MB on the device, and 0\.0 MB are free now; free what"):
            engine.acquire()
    assert engine.released
    engine.acquire()
    assert engine.generate([[1]], GREEDY)[0].error is None


def test_a_server_takes_no_requests_meanwhile(model: HybridLM) -> None:
    loop = EngineLoop(Engine(model, **SIZES))
    loop.start()

    async def work() -> None:
        await loop.between_steps(Engine.release)
        assert loop.alive and not loop.ready
        with pytest.raises(QueueFullError, match="no memory"):
            loop.submit(Request([1], GREEDY, "one"))
        await loop.between_steps(Engine.acquire)
        assert [delta async for delta in loop.submit(Request([1], GREEDY, "one"))][-1].finish_reason == "length"

    try:
        asyncio.run(asyncio.wait_for(work(), 30))
    finally:
        loop.drain(0)
