"""Layers with a sliding window pass what other models pass: parts, company, drafts, the prefix cache, swapping.

The tests are those of ``test_runner`` and ``test_prefix_cache``, on a model with windows shorter than a page.
"""

from collections.abc import Callable

import pytest
import torch
from test_prefix_cache import *  # noqa: F403 - every test of it
from test_runner import *  # noqa: F403 - every test of it

from leyden import Engine, Sampling
from leyden.model import PAGE, Cache, HybridLM, Pools
from leyden.serve.runner import Reading, Runner

_WINDOW = 197
_KINDS = ("linear_attention", "sliding_attention", "full_attention", "sliding_attention")


@pytest.fixture(scope="module")
def make_model(make_model: Callable[..., HybridLM]) -> Callable[..., HybridLM]:
    """Two of the four layers have a window, unless a test says other layers."""
    windowed = {"layer_types": _KINDS, "sliding_window": _WINDOW}
    return lambda **changes: make_model(**({} if "layer_types" in changes else windowed), **changes)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def network(request: pytest.FixtureRequest, make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model().to(request.param)


def _text(length: int) -> list[int]:
    return torch.randint(290, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("window", [1, 5, PAGE, 300])
def test_tokens_see_their_window_in_pools_as_in_a_cache(make_model: Callable[..., HybridLM], window: int) -> None:
    """In float64, as all memory of these layers is: a prompt in two parts, then token by token."""
    kinds = ("sliding_attention", "full_attention", "sliding_attention", "sliding_attention")
    model = make_model(layer_types=kinds, sliding_window=window).double()
    text, pages, cache = _text(700), [3, 1, 7], Cache(model.config)
    pools = Pools(model.config, 3, 9, dtype=torch.float64)
    for memory in (*pools.slots.values(), *pools.pages.values()):
        memory.fill_(torch.nan)  # nothing may be read that was not written
    runner = Runner(model, pools)
    with torch.inference_mode():
        expected = model(torch.tensor([text[:600]]), cache=cache)[0]
        parts = [runner.run([], [Reading(text[a:b], a, pages, [2], wanted=b - a)]) for a, b in ((0, 512), (512, 600))]
        torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-11)
        for position in range(600, 640):
            (step,) = runner.run([Reading([text[position]], position, pages, [2, 2])], [])
            (expected,) = model(torch.tensor([[text[position]]]), cache=cache)[0]
            torch.testing.assert_close(step, expected, rtol=0, atol=1e-11)


def test_what_is_behind_the_window_takes_no_memory(make_model: Callable[..., HybridLM]) -> None:
    model = make_model(layer_types=_KINDS, sliding_window=64)
    config, key = model.config, 2 * model.config.num_key_value_heads * model.config.head_dim * 4
    slot, page = Pools.bytes_of(config, torch.float32)
    plain_slot, plain_page = Pools.bytes_of(make_model(layer_types=_KINDS[::2] * 2).config, torch.float32)
    assert slot == plain_slot // 2 + 2 * 64 * key  # one lightning layer in place of two, and two windows
    assert page == plain_page // 2 == PAGE * key
    cache = Cache(config)
    with torch.inference_mode():
        for part in torch.tensor([_text(300)]).split([200, 99, 1], dim=1):
            model(part, cache=cache)
    assert [x.shape[1] for x in cache.layers[1]._held] == [64, 64]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("settings", [{}, {"speculation": "prompt"}, {"cache_gigabytes": 0.0}, {"decoder": "torch"}])
def test_an_engine_generates_what_the_model_does(model: HybridLM, settings: dict[str, object]) -> None:
    """Twice, so that the second time goes on from the prefix cache where there is one."""
    prompt, cache = _text(600), Cache(model.config)
    expected, token = [], torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(8):
            token = model(token, cache=cache)[:, -1:].argmax(-1)
            expected.append(int(token))
    engine = Engine(model, kv_gigabytes=0.01, **{"cache_gigabytes": 0.01, **settings})
    for _ in range(2):
        (made,) = engine.generate([prompt], Sampling(max_tokens=8, temperature=0.0, ignore_eos=True))
        assert list(made.tokens) == expected
