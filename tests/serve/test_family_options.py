"""The options of other models of the lightning family in an engine: each is computed, in 8 bits too, or said."""

import copy
from collections.abc import Callable

import pytest
import torch

from leyden import Engine, Sampling
from leyden.model import Cache, HybridLM, NativeDecoder, Pools, quantize, text_logprobs
from leyden.ops.decode import UnavailableError
from leyden.serve.weights import decoder_of

FAMILY = {
    "lightning_slope_factor": "none",
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
    "lightning_rotary_dim": 16,
    "lightning_norm_groups": 2,
    "qk_norm": ("linear_attention", "full_attention"),
    "attn_output_gate": True,
    "embedding_multiplier": 12.0,
    "logits_scaling": 6.0,
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 2.0,
}


@pytest.fixture(scope="module")
def family(make_model: Callable[..., HybridLM]) -> HybridLM:
    return make_model(**FAMILY)


def greedy(model: HybridLM, prompt: list[int], count: int) -> list[int]:
    made, token, cache = [], torch.tensor([prompt]), Cache(model.config)
    with torch.inference_mode():
        for _ in range(count):
            token = model(token, cache=cache)[:, -1:].argmax(-1)
            made.append(int(token))
    return made


@pytest.mark.parametrize("settings", [{}, {"speculation": "prompt"}, {"cache_gigabytes": 0.0}])
@pytest.mark.parametrize("bits", [32, 8])
def test_an_engine_generates_what_the_model_does(family: HybridLM, settings: dict[str, object], bits: int) -> None:
    """Twice, so that the second time goes on from the prefix cache where there is one."""
    model = family if bits == 32 else quantize(copy.deepcopy(family), head=True)
    prompt = torch.randint(290, (600,), generator=torch.Generator().manual_seed(6)).tolist()
    expected = greedy(model, prompt, 8)
    engine = Engine(model, kv_gigabytes=0.01, **{"cache_gigabytes": 0.01, **settings})
    for _ in range(2):
        (made,) = engine.generate([prompt], Sampling(max_tokens=8, temperature=0.0, ignore_eos=True))
        assert list(made.tokens) == expected


def test_a_trainer_and_an_engine_have_the_same_bits(family: HybridLM) -> None:
    texts = [[1, 2, 3, 4], [7] * 265, list(range(40))]
    engine = Engine(copy.deepcopy(family), kv_gigabytes=0.01, cache_gigabytes=0.001)
    given = [torch.tensor(one) for one in engine.text_logprobs(texts)]
    found = text_logprobs(copy.deepcopy(family).train(), texts)
    assert all(torch.equal(one, other) for one, other in zip(given, found, strict=True))


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_the_native_step_refuses_what_it_does_not_compute(make_model: Callable[..., HybridLM], name: str) -> None:
    model = make_model(**{name: FAMILY[name]})
    pools = Pools(model.config, 2, 4, dtype=torch.float32)
    with pytest.raises(UnavailableError, match=f"does not compute with {name} = "):
        NativeDecoder(model, pools)
    assert decoder_of(model, pools, "auto") is None


def test_the_native_step_has_every_slope(make_model: Callable[..., HybridLM]) -> None:
    for factor in ("previous_layer", "none"):
        model = make_model(lightning_slope_factor=factor)
        made = Engine(model, kv_gigabytes=0.01).generate([[1, 2, 3]], Sampling(max_tokens=8, temperature=0.0))
        assert list(made[0].tokens)[:8] == greedy(model, [1, 2, 3], 8)[: len(made[0].tokens)]
