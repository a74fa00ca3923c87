"""Steps of the engine on a GPU: recordings give the bits of their steps, nothing waits, and any device will do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from leyden.model import PAGE, HybridLM, Pools
from leyden.serve import Engine, Sampling
from leyden.serve.graphs import CudaRecorder, DecodeGraphs
from leyden.serve.runner import Reading, Runner

pytestmark = pytest.mark.gpu

KINDS = ("linear_attention", "full_attention", "linear_attention")


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def network(make_model: Callable[..., HybridLM]) -> HybridLM:
    """Dense: whether experts wait depends on the GPU."""
    return make_model(num_hidden_layers=3, layer_types=KINDS, num_local_experts=0).to("cuda", torch.bfloat16)


def _pools(network: HybridLM, device: str = "cuda") -> Pools:
    pools = Pools(network.config, 40, 80, dtype=network.dtype, device=device)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.normal_(generator=torch.Generator(device).manual_seed(0))
    return pools


def _decodes(count: int, step: int) -> list[Reading]:
    return [Reading([i + step], PAGE - 2 + i + step, [2 * i, 2 * i + 1], [i, i]) for i in range(count)]


def test_recordings_give_the_bits_of_their_steps(network: HybridLM) -> None:
    recorded, plain = _pools(network), _pools(network)
    graphs = DecodeGraphs(network, recorded, CudaRecorder(recorded.states.device))
    alone = DecodeGraphs(network, plain, lambda step: step)
    for step, count in enumerate([3, 17, 5, 33, 1]):
        ours, theirs = graphs.run(_decodes(count, step)), alone.run(_decodes(count, step))
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    assert torch.equal(recorded.states, plain.states)
    assert torch.equal(recorded.keys[:, :-1], plain.keys[:, :-1])


@pytest.mark.parametrize("recorded", [True, False])
def test_steps_do_not_wait(network: HybridLM, recorded: bool) -> None:
    pools = _pools(network)
    graphs = DecodeGraphs(network, pools, CudaRecorder(pools.device)) if recorded else None
    runner = Runner(network, pools, graphs)
    prompt = Reading([1] * 300, PAGE, [70, 71, 72], [39])
    for _ in range(2):  # the first one compiles and records
        runner.run(_decodes(5, 0), [])
        runner.run(_decodes(5, 1), [prompt])
    with nothing_waits():
        runner.run(_decodes(5, 2), [])
        runner.run(_decodes(5, 3), [prompt])


def test_an_engine_generates_what_its_modules_do(network: HybridLM) -> None:
    prompts = [[5, 9, 2], list(range(1, 290)), [7]]
    sampling = [
        Sampling(max_tokens=20, temperature=0.0),
        Sampling(max_tokens=5, seed=1),
        Sampling(max_tokens=9, seed=2),
    ]
    found = []
    for decoder in ("graph", "torch"):
        with Engine(network, None, decoder=decoder, kv_gigabytes=0.01, max_sequences=4) as engine:
            found.append([completion.tokens for completion in engine.generate(prompts, sampling)])
    assert [list(map(len, tokens)) for tokens in found] == [[20, 5, 9]] * 2
    assert found[0][0][0] == found[1][0][0]  # later ones may differ by products of another form


def test_another_device_than_the_current_one(network: HybridLM) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    there = network.to("cuda:1")
    pools = _pools(there, "cuda:1")
    assert torch.cuda.current_device() == 0
    runner = Runner(there, pools, DecodeGraphs(there, pools, CudaRecorder(pools.device)))
    for _ in range(2):
        assert runner.run(_decodes(3, 0), []).isfinite().all()
    assert torch.cuda.current_device() == 0
