"""Latent attention passes what other models pass: parts, company, drafts, the prefix cache, swapping.

The tests are those of ``test_runner`` and ``test_prefix_cache``, on a model with latents in its pages.
"""

from collections.abc import Callable

import pytest
import torch
from test_prefix_cache import *  # noqa: F403 - every test of it
from test_runner import *  # noqa: F403 - every test of it

from leyden import Engine, Sampling
from leyden.core.errors import UserError
from leyden.model import PAGE, Cache, HybridLM, NativeDecoder, Pools
from leyden.model.adapter_set import AdapterSet
from leyden.model.decode import UnavailableError
from leyden.model.lora import LoraConfig, adapted_modules, adapter_for, adapter_parameters, add_lora
from leyden.model.quantized import quantize
from leyden.serve.runner import Reading, Runner

SHAPE = {
    "layer_types": ("latent_attention", "linear_attention", "full_attention", "latent_attention"),
    "rotary_dim": 8,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rope_interleave": True,
}


@pytest.fixture(scope="module")
def make_model(make_model: Callable[..., HybridLM]) -> Callable[..., HybridLM]:
    """Two of the four layers are of the kind, unless a test says other layers."""
    return lambda **changes: make_model(**({} if "layer_types" in changes else SHAPE), **changes)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def network(request: pytest.FixtureRequest, make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model().to(request.param)


def _text(length: int) -> list[int]:
    return torch.randint(290, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def test_pools_give_what_a_cache_gives(make_model: Callable[..., HybridLM]) -> None:
    """In float64, as all memory of these layers is: a prompt in two parts, expanded, then token by token, absorbed."""
    model = make_model(**SHAPE | {"layer_types": ("latent_attention",) * 4}).double()
    text, pages, cache = _text(700), [3, 1, 7], Cache(model.config)
    pools = Pools(model.config, 3, 9, dtype=torch.float64)
    for memory in pools.pages.values():
        memory.fill_(torch.nan)  # nothing may be read that was not written
    runner = Runner(model, pools)
    with torch.inference_mode():
        expected = model(torch.tensor([text[:600]]), cache=cache)[0]
        parts = [runner.run([], [Reading(text[a:b], a, pages, [2], wanted=b - a)]) for a, b in ((0, 512), (512, 600))]
        torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-11)
        for position in range(600, 620):
            (step,) = runner.run([Reading([text[position]], position, pages, [2, 2])], [])
            (expected,) = model(torch.tensor([[text[position]]]), cache=cache)[0]
            torch.testing.assert_close(step, expected, rtol=0, atol=1e-11)


def test_a_token_takes_its_latent_and_one_shared_key(model: HybridLM) -> None:
    heads = 2 * model.config.num_key_value_heads * model.config.head_dim
    assert Pools.bytes_of(model.config, torch.bfloat16)[1] == PAGE * 2 * (2 * (24 + 8) + heads)


def test_the_native_step_has_no_body_for_it(model: HybridLM) -> None:
    with pytest.raises(UnavailableError, match="no body for LatentAttention"):
        NativeDecoder(model, Pools(model.config, 2, 4, dtype=torch.float32))


@pytest.mark.parametrize("settings", [{}, {"speculation": "prompt"}, {"cache_gigabytes": 0.0}])
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


def test_weights_in_8_bits_are_absorbed_as_they_are_expanded(make_model: Callable[..., HybridLM]) -> None:
    model = quantize(make_model().double())
    tokens, cache = torch.tensor([_text(40)]), Cache(model.config)
    with torch.inference_mode():
        steps = torch.cat([model(tokens[:, t : t + 1], cache=cache) for t in range(40)], dim=1)
        torch.testing.assert_close(steps, model(tokens), rtol=0, atol=1e-10)


def test_an_adapter_is_absorbed_as_it_is_expanded(make_model: Callable[..., HybridLM]) -> None:
    model = add_lora(make_model().double(), LoraConfig(rank=2, targets=("attention",))).double().eval()
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(len(parameter)))
    tokens, cache = torch.tensor([_text(40)]), Cache(model.config)
    with torch.inference_mode():
        steps = torch.cat([model(tokens[:, t : t + 1], cache=cache) for t in range(40)], dim=1)
        torch.testing.assert_close(steps, model(tokens), rtol=0, atol=1e-10)


def test_an_adapter_of_what_is_remembered_cannot_be_chosen_by_row(make_model: Callable[..., HybridLM]) -> None:
    model = make_model()
    found = {name: adapter_for(model.get_submodule(name), 2, 1.0) for name in adapted_modules(model, ("attention",))}
    assert any(name.endswith("kv_b_proj") for name in found)
    with pytest.raises(UserError, match=r"the adapter 'mine' adds to layers\.0\.self_attn\.kv_b_proj.* leaves kv_b"):
        AdapterSet(model, {"mine": found})
    others = {name: one for name, one in found.items() if not name.endswith("kv_b_proj")}
    AdapterSet(make_model(), {"mine": others})
