"""Low-rank additions: against their formula in float64, nothing at first, and a gradient for them alone."""

from collections.abc import Callable

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import HybridLM, NativeDecoder, Pools, quantize
from leyden.model.decode import UnavailableError
from leyden.model.lora import LoraConfig, adapted_modules, adapter_parameters, add_lora, base_of, quantize_base
from leyden.model.quantized import scale_of

ModelMaker = Callable[..., HybridLM]
EVERYTHING = LoraConfig(rank=3, alpha=6.0, targets=("attention", "experts"))


def tokens() -> torch.Tensor:
    return torch.randint(101, (2, 37), generator=torch.Generator().manual_seed(0))


def test_an_adapted_model_first_computes_what_its_base_computes(random_model: ModelMaker) -> None:
    with torch.no_grad():
        wanted = random_model(torch.float64)(tokens())
        found = add_lora(random_model(torch.float64), EVERYTHING)(tokens())
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_logits_and_gradients_are_those_of_added_weights(random_model: ModelMaker) -> None:
    """In float64, against a model whose weights are W + scale B A, whose gradients give those of A and B."""
    model, plain = add_lora(random_model(torch.float64), EVERYTHING).double(), random_model(torch.float64)
    randomized(model)
    pairs = {}
    for name, b in adapter_parameters(model).items():
        if name.endswith("b"):
            owner, _, leaf = name.partition(".lora.")
            weight = f"{owner}.weight" if leaf == "b" else f"{owner}.{leaf.removesuffix('_b')}_proj"
            pairs[name] = (weight, b, adapter_parameters(model)[name[:-1] + "a"])
    for weight, b, a in pairs.values():
        plain.get_parameter(weight).data += 2.0 * b.data @ a.data
    loss, wanted = (one(tokens()).square().mean() for one in (model, plain))
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    loss.backward()
    wanted.backward()
    for weight, b, a in pairs.values():
        dw = plain.get_parameter(weight).grad
        torch.testing.assert_close(b.grad, 2.0 * dw @ a.mT, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.grad, 2.0 * b.mT @ dw, rtol=1e-9, atol=1e-12)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == set(adapter_parameters(model)) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_what_is_drawn_follows_from_the_seed_and_the_name(random_model: ModelMaker) -> None:
    one, two = (adapter_parameters(add_lora(random_model(), EVERYTHING, seed)) for seed in (0, 0))
    other = adapter_parameters(add_lora(random_model(), EVERYTHING, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if name.endswith("a"))


def test_the_model_without_its_adapters_is_in_the_same_memory(random_model: ModelMaker) -> None:
    model, plain = add_lora(random_model(), EVERYTHING), random_model()
    for parameter in adapter_parameters(model).values():
        parameter.data.fill_(0.1)
    base = base_of(model)
    with torch.no_grad():
        assert torch.equal(base(tokens()), plain(tokens()))
        assert not torch.equal(model(tokens()), plain(tokens()))
    assert all(weight.data_ptr() == model.get_parameter(name).data_ptr() for name, weight in base.named_parameters())


def test_a_base_in_8_bits_trains_the_same_adapters(random_model: ModelMaker) -> None:
    """Against a model in floats that has the values of the 8 bits, in float64: loss and gradients."""
    model = randomized(add_lora(random_model(torch.float64), EVERYTHING).double())
    plain = randomized(add_lora(random_model(torch.float64), EVERYTHING).double())
    quantize_base(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapter_parameters(plain))
    buffers = dict(model.named_buffers())
    for name, weight in plain.named_parameters():
        if name in buffers:
            weight.data.copy_(buffers[name].double() * buffers[scale_of(name)].double().unsqueeze(-1))
    loss, wanted = (one(tokens()).square().mean() for one in (model, plain))
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    loss.backward()
    wanted.backward()
    for name, parameter in adapter_parameters(plain).items():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        base = base_of(model)
        assert torch.equal(base(tokens()), quantize(random_model(torch.float64))(tokens()))


def randomized(model: HybridLM) -> HybridLM:
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model).values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def test_targets_are_known_by_name(random_model: ModelMaker) -> None:
    model = random_model()
    assert all(name.endswith("q_proj") for name in adapted_modules(model, ("q_proj",)))
    assert len(adapted_modules(model, ("experts",))) == model.config.num_hidden_layers
    with pytest.raises(UserError, match=r"'q_proy' is no projection of this model.*q_proj"):
        add_lora(model, LoraConfig(targets=("q_proy",)))


def test_the_native_decoder_refuses_adapters_in_words(random_model: ModelMaker) -> None:
    model = add_lora(random_model(), EVERYTHING)
    with pytest.raises(UnavailableError, match="LowRank"):
        NativeDecoder(model, Pools(model.config, 2, 2, dtype=torch.float32))
