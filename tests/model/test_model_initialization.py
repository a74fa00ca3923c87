"""Initial weights: Xavier's variance, DeepNorm's gains, and nothing but the seed decides them."""

import math

import pytest
import torch

from leyden.model import HybridLM, ModelConfig

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "layer_types": ("linear_attention", "full_attention"),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "num_local_experts": 3,
    "shared_intermediate_size": 64,
}


def build(seed: int = 0, **changes: object) -> HybridLM:
    return HybridLM(ModelConfig.parse({**SHAPE, **changes}, "test"), seed=seed)


def spread(weight: torch.Tensor) -> float:
    """The standard deviation in units of Xavier's, ``sqrt(2 / (rows + columns))``."""
    weight = weight.detach()
    assert abs(weight.mean()) < 4 * weight.std() / math.sqrt(weight.numel())
    return weight.std().item() / math.sqrt(2 / sum(weight.shape))


@pytest.mark.parametrize("postnorm", [True, False])
def test_every_matrix_has_xaviers_variance_and_deepnorms_gain(postnorm: bool) -> None:
    model = build(postnorm=postnorm)
    beta = (8 * 2) ** -0.25 if postnorm else 1.0
    lightning, softmax = (layer.self_attn for layer in model.layers)
    q, k, v = lightning.qkv_proj.weight.view(4, 3, 32, 96).transpose(0, 1).flatten(1, 2)
    moe = model.layers[0].mlp
    gate, up = moe.experts.gate_up_proj[1].chunk(2)
    shared = moe.shared.mlp
    plain = [q, k, lightning.output_gate.weight, softmax.q_proj.weight, softmax.k_proj.weight, moe.gate.weight]
    plain += [model.embed_tokens.weight, model.lm_head.weight]
    scaled = [v, lightning.out_proj.weight, softmax.v_proj.weight, softmax.o_proj.weight]
    scaled += [gate, up, moe.experts.down_proj[2]]
    scaled += [shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight]
    for gain, weights in ((1.0, plain), (beta, scaled)):
        for weight in weights:
            assert spread(weight) == pytest.approx(gain, rel=6 / math.sqrt(2 * weight.numel()))


def test_norms_begin_at_one() -> None:
    vectors = [(name, p) for name, p in build().named_parameters() if p.ndim == 1]
    assert len(vectors) == 2 * 2 + 1 + 1
    assert all((p == 1).all() for _, p in vectors)


def test_every_parameter_is_filled_and_the_seed_decides_it() -> None:
    one, same, other = build(3), build(3), build(4)
    for name, parameter in one.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert torch.equal(parameter, same.get_parameter(name)), name
        assert parameter.ndim == 1 or not torch.equal(parameter, other.get_parameter(name)), name


def test_the_global_generator_does_not_matter() -> None:
    torch.manual_seed(1)
    one = build()
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), build().parameters(), strict=True))


def test_tied_embeddings_are_one_tensor() -> None:
    model = build(tie_word_embeddings=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert spread(model.lm_head.weight) == pytest.approx(1, rel=0.05)
