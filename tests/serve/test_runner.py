"""A step over many sequences: each one's bits are those of reading it alone, in whatever parts and company."""

from collections.abc import Callable

import pytest
import torch

from leyden.model import PAGE, Cache, HybridLM, Pools
from leyden.serve.runner import Reading, Runner


def _text(length: int, seed: int, vocab: int) -> list[int]:
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _runner(model: HybridLM) -> Runner:
    pools = Pools(model.config, 8, 24, dtype=model.lm_head.weight.dtype)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.fill_(torch.nan)  # nothing may be read that was not written
    return Runner(model, pools)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def network(request: pytest.FixtureRequest, make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model().to(request.param)


@pytest.mark.parametrize("length", [700, 512, 257, 256, 5, 1])
def test_parts_and_company_change_no_bit(network: HybridLM, length: int) -> None:
    vocab = network.config.vocab_size
    text, other = _text(length, 1, vocab), _text(600, 2, vocab)
    pages = [3, 1, 7]
    whole = _runner(network).run([], [Reading(text, 0, pages, [2])])
    runner = _runner(network)
    logits = torch.empty(0)
    for start in range(0, length, PAGE):
        part = Reading(text[start : start + PAGE], start, pages, [5])
        company = Reading(other[start : start + 100], 0, [9, 10], [0])
        logits = runner.run([Reading([7], 0, [11], [1, 1])], [company, part])[2:]
    assert torch.equal(whole, logits)


def test_the_logits_are_those_of_the_model(network: HybridLM) -> None:
    text = _text(530, 3, network.config.vocab_size)
    runner, cache = _runner(network), Cache(network.config)
    with torch.inference_mode():
        expected = network(torch.tensor([text]), cache=cache)[0]
        got = runner.run([], [Reading(text, 0, [0, 1, 2], [0], wanted=len(text))])
        following = [network(torch.tensor([[token]]), cache=cache)[0, 0] for token in (4, 5, 6)]
    tolerance = 1e-4 if network.lm_head.weight.dtype == torch.float32 else 0.3
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
    step = runner.run([Reading([4, 5, 6], 530, [0, 1, 2], [0, 3, 4, 5], wanted=3)], [])
    torch.testing.assert_close(step, torch.stack(following), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("length", "wanted"), [(700, 1), (641, 1), (640, 130), (512, 1), (257, 2), (130, 3), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_wanted_changes_no_bit_of_what_is(
    make_model: Callable[..., HybridLM], dtype: torch.dtype, length: int, wanted: int
) -> None:
    """A last layer of softmax attention computes no more than the wanted rows' blocks of queries."""
    network = make_model(layer_types=("linear_attention",) * 3 + ("full_attention",)).to(dtype)
    vocab = network.config.vocab_size
    text, other = _text(length, 5, vocab), _text(300, 6, vocab)

    def read(wanted: int, others: int) -> torch.Tensor:
        readings = [Reading(other, 0, [9, 10], [0], wanted=others), Reading(text, 0, [3, 1, 7], [2], wanted=wanted)]
        return _runner(network).run([], readings)

    every = read(length, 300)[300:]
    assert torch.equal(read(wanted, 1)[1:], every[-wanted:])
    assert torch.equal(read(wanted, 0), every[-wanted:])


def test_a_draft_can_be_taken_back(network: HybridLM) -> None:
    text = _text(300, 4, network.config.vocab_size)
    runner = _runner(network)
    runner.run([], [Reading(text, 0, [0, 1], [0]), Reading(text[:9], 0, [2], [6])])
    company = Reading([3], 9, [2], [6, 6])
    drafted = runner.run([Reading([4, 5, 6], 300, [0, 1], [0, 1, 2, 3], wanted=3), company], [])
    one = runner.run([Reading([4], 300, [0, 1], [0, 4])], [])
    other = runner.run([Reading([9], 301, [0, 1], [1, 1])], [])
    again = runner.run([Reading([9], 301, [0, 1], [4, 4])], [])
    assert torch.equal(drafted[0], one[0])
    assert torch.equal(other, again)
