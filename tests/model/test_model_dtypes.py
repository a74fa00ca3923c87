"""Slopes, decays, running states, routers and norms are float32 whatever the model is cast to."""

from collections.abc import Callable

import pytest
import torch

from leyden.model import Cache, HybridLM
from leyden.model.experts import Router
from leyden.model.mixers.lightning import Slopes
from leyden.model.mixers.states import RunningState
from leyden.model.norm import RMSNorm
from leyden.ops import lightning_slopes

ModelMaker = Callable[..., HybridLM]

CASTS = {
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "to(device, half)": lambda model: model.to("cpu", torch.float16),
    "half and back": lambda model: model.half().float(),
}


def float32_modules(model: HybridLM) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, RMSNorm | Router | Slopes)]


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_a_cast_leaves_norms_routers_and_slopes(random_model: ModelMaker, cast: Callable) -> None:
    model, untouched = random_model(), random_model()
    cast(model)
    before, after = float32_modules(untouched), float32_modules(model)
    assert len(after) == 3 * 2 + 1 + 2 + 3 + 2  # norms of layers, of the model, of lightning; routers; slopes
    for old, new in zip(before, after, strict=True):
        for one, other in zip([*old.parameters(), *old.buffers()], [*new.parameters(), *new.buffers()], strict=True):
            assert other.dtype == torch.float32
            assert torch.equal(one, other)


def test_a_cast_leaves_the_bias_of_a_router(random_model: ModelMaker) -> None:
    model = random_model(router="sigmoid_groups")
    before = model.layers[0].mlp.gate.expert_bias.clone()
    after = model.bfloat16().layers[0].mlp.gate.expert_bias
    assert after.dtype == torch.float32
    assert torch.equal(before, after)


def test_a_cast_to_float64_is_followed_without_rounding(random_model: ModelMaker) -> None:
    model = random_model().double()
    for module in float32_modules(model):
        assert all(tensor.dtype == torch.float64 for tensor in [*module.parameters(), *module.buffers()])
    assert torch.equal(model.layers[2].self_attn.slopes.values.float(), lightning_slopes(4, 2, 3))


def test_slopes_are_no_weights(random_model: ModelMaker) -> None:
    model = random_model()
    assert not any("slopes" in name for name in model.state_dict())
    assert not any("slopes" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_and_routing_are_float32(random_model: ModelMaker, dtype: torch.dtype) -> None:
    model = random_model(dtype)
    cache, tokens = Cache(model.config), torch.arange(9)[None]
    with torch.no_grad():
        features = model.features(tokens, cache=cache)
        logits = model(tokens[:, :1], cache=cache)  # one step of decoding too
    assert features.hidden.dtype == dtype
    assert logits.dtype == torch.float32
    for layer in cache.layers:
        if isinstance(layer, RunningState):
            assert layer.state is not None
            assert layer.state.dtype == torch.float32
    for routing in features.routings:
        assert routing.logits.dtype == routing.probabilities.dtype == routing.weights.dtype == torch.float32


def test_a_bfloat16_model_rounds_no_more_than_its_matrices(random_model: ModelMaker) -> None:
    """Against float64 with the same bfloat16 weights: the error of one rounding a layer, not of a rounded decay."""
    model = random_model(torch.bfloat16, num_local_experts=0)
    tokens = torch.randint(101, (1, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rounded, exact = model(tokens).double(), model.double()(tokens)
    error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 8 * 2**-9
