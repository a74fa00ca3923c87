"""Steps on a GPU, without one: nothing waits for the device, few kernels are launched, and recordings are exact.

What would run on a GPU runs on meta tensors, of which nothing can be read (``device_ops.py``).
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_ops import DeviceQueue, RecordedOps, take_gpu_bodies

from leyden.core.device import default_device
from leyden.model import HybridLM, Pools
from leyden.serve import Engine, Sampling, steps
from leyden.serve.graphs import DecodeGraphs, size_of
from leyden.serve.runner import Reading, Runner
from leyden.serve.sampling import Sampler, choose_together, draw
from leyden.serve.speculation import draft
from leyden.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.skipif(default_device().type != "cpu", reason="kernels are interpreted where there is no GPU"),
    pytest.mark.usefixtures("fast_interpreter"),
]

DTYPE = torch.bfloat16


@pytest.fixture(autouse=True)
def gpu_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    take_gpu_bodies(monkeypatch)


def _pools(model: HybridLM, device: str = "cpu") -> Pools:
    pools = Pools(model.config, 40, 24, dtype=model.dtype, device=device)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.fill_(torch.nan)  # nothing may be read that was not written
    return pools


def _decodes(count: int) -> list[Reading]:
    return [Reading([i], 300 + i, [i % 20, i % 20 + 1], [i, i]) for i in range(count)]


@pytest.fixture
def on_device(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model().to(DTYPE).to("meta")


@pytest.mark.parametrize("beside", ["alone", "prompts", "no decodes"])
def test_no_step_waits_and_each_is_told_by_one_copy(on_device: HybridLM, beside: str) -> None:
    runner = Runner(on_device, _pools(on_device, "meta"))
    decodes = [] if beside == "no decodes" else _decodes(5)
    prompts = [Reading([1] * 300, 256, [21, 22, 23], [30]), Reading([1] * 40, 0, [20], [31], wanted=0)]
    with DeviceQueue() as queue:
        logits = runner.run(decodes, [] if beside == "alone" else prompts)
    assert logits.shape == (len(decodes) + (beside != "alone"), on_device.config.vocab_size)
    assert queue.copies == 1


def _launches(network: HybridLM, decodes: list[Reading], prompts: list[Reading]) -> int:
    """Of a step on a GPU; where only single tokens are read, of what is recorded."""
    pools = _pools(network, "meta")
    with DeviceQueue() as queue:
        if prompts:
            Runner(network, pools).run(decodes, prompts)
        else:
            queues = []

            def record(step: Callable[[], None]) -> Callable[[], None]:
                before = queue.num_launches
                step()
                queues.append(queue.num_launches - before)
                return step

            assert DecodeGraphs(network, pools, record).run(decodes) is not None
            return queues[0]
    return queue.num_launches


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 5, "logprobs": 3},
        {"top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.3, "logit_bias": {3: 2.0}, "logprobs": 0},
    ],
)
def test_tokens_come_back_by_one_copy(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With whatever is to be reported of them; rows of several requests are drawn together."""
    fetched = []

    def fetch(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        fetched.append(tensors)
        return [torch.zeros(x.shape, dtype=x.dtype) for x in tensors]

    monkeypatch.setattr("leyden.serve.sampling.sampler.fetch", fetch)
    samplers = [Sampler(Sampling(seed=i, **own), [1, 2]) for i, own in enumerate([how, {}, {"temperature": 0.0}])]
    with DeviceQueue():
        draws = draw(samplers, torch.empty(3, 50, device="meta"))
    assert len(fetched) == 1
    assert [one.token for one in draws] == [0, 0, 0]
    assert (draws[0].logprobs is None) == ("logprobs" not in how)


def test_guesses_come_back_by_one_copy_and_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = [None, Sampler(Sampling(seed=4, top_k=7)), Sampler(Sampling(temperature=0.0)), Sampler(Sampling(seed=5))]
    logits, ahead = 3 * torch.randn(4, 60, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 3]
    expected, fetched = draft._foretell(samplers, logits, ahead), []

    def fetch(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        fetched.append(tensors)
        return [torch.zeros(4, dtype=torch.int64)]

    monkeypatch.setattr(draft, "fetch", fetch)
    with DeviceQueue():
        assert draft._foretell(samplers, logits.to("meta", non_blocking=True), ahead) == [0] * 4
    assert len(fetched) == 1
    samplings = [Sampling(temperature=0.0) if own is None else own.sampling for own in samplers]
    uniforms = [0.0 if own is None else own.uniform_of(places) for own, places in zip(samplers, ahead, strict=True)]
    assert choose_together(samplings, uniforms, logits).tolist() == expected


@pytest.mark.parametrize(
    ("step", "lightning", "softmax", "around"),
    [("decode", 13, 16, 14), ("prefill", 15, 26, 17), ("mixed", 16, 27, 17)],
)
def test_kernels_of_a_layer(
    make_model: Callable[..., HybridLM], step: str, lightning: int, softmax: int, around: int
) -> None:
    """An op of Leyden counts as one; lower is better, and nothing may come back."""
    decodes = [] if step == "prefill" else _decodes(5)
    prompts = [] if step == "decode" else [Reading([1] * 300, 256, [21, 22, 23], [30])]

    def launches(*kinds: str) -> int:
        network = make_model(num_hidden_layers=len(kinds), layer_types=kinds).to(DTYPE).to("meta")
        return _launches(network, decodes, prompts)

    one, two = launches("linear_attention"), launches("linear_attention", "linear_attention")
    with_softmax = launches("full_attention", "linear_attention")
    assert (two - one, with_softmax - one, one - (two - one)) == (lightning, softmax, around)


@pytest.mark.parametrize("kind", ["hgrn2_attention", "cosformer2_attention"])
@pytest.mark.parametrize("decodes", [True, False])
def test_other_kinds_of_linear_attention_wait_for_nothing(
    make_model: Callable[..., HybridLM], kind: str, decodes: bool
) -> None:
    """In a recorded step of single tokens, and where a part of a prompt is read."""
    network = make_model(num_hidden_layers=2, layer_types=(kind, kind)).to(DTYPE).to("meta")
    prompts = [] if decodes else [Reading([1] * 300, 256, [21, 22, 23], [30])]
    assert _launches(network, _decodes(5), prompts) > 0


HELD = [(250, [3, 1, 8], 5), (256, [7, 2], 0), (3, [6], 9), (510, [11, 10, 4], 2)]
"""Of four sequences, how many tokens were read, their pages, and their slots."""


def _pools_of_held(network: HybridLM) -> Pools:
    """As if those were read; all other memory is poisoned."""
    pools, generator = _pools(network), torch.Generator().manual_seed(0)
    slots, pages = [slot for _, _, slot in HELD], [page for _, own, _ in HELD for page in own]
    held = [(memory, slots) for memory in pools.slots.values()] + [(memory, pages) for memory in pools.pages.values()]
    for memory, places in held:
        values = torch.randn(len(memory), len(places), *memory.shape[2:], generator=generator)
        memory[:, places] = values.to(memory.dtype)
    return pools


def _somebodys(pools: Pools) -> list[torch.Tensor]:
    """All memory but for the slot and the page that are nobody's."""
    slots = [memory[:, : pools.num_states] for memory in pools.slots.values()]
    return slots + [memory[:, : pools.num_pages] for memory in pools.pages.values()]


def test_a_recording_gives_the_bits_of_its_step(make_model: Callable[..., HybridLM]) -> None:
    """While lengths, slots, pages, the width of tables and the number of sequences change from step to step."""
    network = make_model(num_hidden_layers=2, layer_types=("linear_attention", "full_attention"), num_attention_heads=1)
    recorder, recorded, plain = RecordedOps(), _pools_of_held(network), _pools_of_held(network)
    graphs, steps_alone = DecodeGraphs(network, recorded, recorder), DecodeGraphs(network, plain, lambda step: step)
    lengths = [length for length, _, _ in HELD]
    for step, company in enumerate([[0, 1, 2], [2, 0], [3]]):
        decodes = [Reading([step + 7 * i], lengths[i], HELD[i][1], [HELD[i][2]] * 2) for i in company]
        if step == 2:  # more pages than it needs: another table
            decodes = [decodes[0]._replace(pages=[*HELD[3][1], 12, 13])]
        expected, got = steps_alone.run(decodes), graphs.run(decodes)
        assert got is not None
        assert torch.equal(got, expected)
        for i in company:
            lengths[i] += 1
    assert recorder.recordings == 2  # of 16 rows, with tables of 4 and of 16 pages
    for ours, theirs, before in zip(*map(_somebodys, (recorded, plain, _pools_of_held(network))), strict=True):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))
        assert ours.isnan().sum() == before.isnan().sum()


def test_what_cannot_be_recorded_is_left_to_the_modules(make_model: Callable[..., HybridLM]) -> None:
    network = make_model().to(DTYPE)
    recorder, pools = RecordedOps(), _pools_of_held(network)
    graphs = DecodeGraphs(network, pools, recorder)
    length, pages, slot = HELD[0]
    plain = Reading([1], length, pages, [slot] * 2)
    for other in (
        plain._replace(tokens=[1, 2], states=[slot] * 3),
        plain._replace(states=[slot, 30]),
        plain._replace(wanted=0),
        Reading([1], 0, [12], [31, 31]),
    ):
        assert graphs.run([plain, other]) is None
    assert graphs.run([]) is None
    assert graphs.run([plain] * 49) is None  # more than there are slots
    assert recorder.recordings == 0


def test_a_step_that_waits_is_run_by_the_modules_ever_after(
    make_model: Callable[..., HybridLM], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the CPU's bodies take less time
    network = make_model().to(DTYPE)
    pools, attempts = _pools_of_held(network), []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        attempts.append(step)
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    runner = Runner(network, pools, DecodeGraphs(network, pools, record))
    length, pages, slot = HELD[0]
    caplog.set_level(logging.INFO)
    for i in range(2):
        assert runner.run([Reading([1], length + i, pages, [slot] * 2)], []).isfinite().all()
    assert len(attempts) == 1
    assert "decoding without CUDA graphs: called a synchronizing CUDA operation" in caplog.text


@pytest.mark.slow
def test_an_engine_on_recordings_generates_what_one_on_modules_does(
    make_model: Callable[..., HybridLM], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_model(num_hidden_layers=2, layer_types=("linear_attention", "full_attention"), num_attention_heads=1)
    recorder, prompts = RecordedOps(), [[5, 9, 2], list(range(1, 20))]
    sampling = [Sampling(max_tokens=4, temperature=0.0), Sampling(max_tokens=3, seed=3)]
    with Engine(network, None, decoder="torch", max_sequences=4, kv_gigabytes=0.001) as engine:
        expected = [c.tokens for c in engine.generate(prompts, sampling)]
    monkeypatch.setattr(steps, "decoder_of", lambda model, pools, decoder: DecodeGraphs(model, pools, recorder))
    with Engine(network, None, max_sequences=4, kv_gigabytes=0.001) as engine:
        assert [c.tokens for c in engine.generate(prompts, sampling)] == expected
    assert recorder.recordings == 1


def test_sizes_of_recordings() -> None:
    sizes = [size_of(rows) for rows in (0, 1, 16, 17, 33, 49, 65, 97, 129, 193, 200)]
    assert sizes == [16, 16, 16, 32, 48, 64, 96, 128, 192, 256, 256]
    assert all(size_of(rows) >= rows and size_of(rows) % 16 == 0 for rows in range(1000))
