"""A model in 8 bits: which modules change, how little they change, and that casts leave them alone."""

import copy

import pytest
import torch

from leyden.model import HybridLM, ModelConfig, QuantizedExperts, QuantizedLinear, quantize
from leyden.ops import IGNORE_INDEX

_SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_types": ("linear_attention", "full_attention"),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "intermediate_size": 48,
    "num_local_experts": 4,
    "shared_intermediate_size": 32,
}
_TOKENS = torch.randint(300, (1, 40), generator=torch.Generator().manual_seed(0))


def _model(**changes: object) -> HybridLM:
    return HybridLM(ModelConfig.parse({**_SHAPE, **changes}, "test model")).eval()


def _by_hand(model: HybridLM, head: bool) -> HybridLM:
    """Every matrix rounded to its 8 bits and back, held in float."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            kept = weight.ndim < 2 or "mlp.gate.weight" in name or "coefficient" in name
            if not kept and (head or name not in ("embed_tokens.weight", "lm_head.weight")):
                scale = weight.abs().amax(-1, keepdim=True) / 127
                weight.copy_((weight / scale).round() * scale)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_local_experts": 0, "tie_word_embeddings": True},
        {"router": "sigmoid_groups", "shared_expert_gate": False},
    ],
    ids=["moe", "dense", "sigmoid"],
)
@pytest.mark.parametrize("head", [False, True])
def test_it_computes_with_the_rounded_weights(head: bool, changes: dict[str, object]) -> None:
    model = _model(**changes)
    rounded, quantized = _by_hand(model, head), quantize(copy.deepcopy(model), head=head)
    with torch.inference_mode():
        exact, got, original = (m(_TOKENS) for m in (rounded, quantized, model))
        torch.testing.assert_close(got, exact, atol=2e-5, rtol=2e-5)
        assert 1e-4 < (got - original).norm() / original.norm() < 0.05
        labels = torch.where(_TOKENS % 5 == 0, IGNORE_INDEX, _TOKENS)
        weights = torch.linspace(-1, 1, labels.numel()).view(labels.shape)
        losses = []
        for m in (quantized, rounded):
            hidden = m.features(_TOKENS).hidden
            losses.append([*m.token_nll(hidden, labels), *m.cross_entropy(hidden, labels, weights)])
            losses[-1] += m.cross_entropy(hidden, labels)
    for mine, theirs in zip(*losses, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-5)


def test_scales_stay_float32_and_the_rest_follows_a_cast() -> None:
    model = quantize(_model(), head=True).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    scales = [buffer for name, buffer in model.named_buffers() if "scale" in name]
    assert len(scales) == 19 and all(scale.dtype == torch.float32 for scale in scales)
    with torch.inference_mode():
        assert model.features(_TOKENS).hidden.dtype == torch.bfloat16
        assert model(_TOKENS).isfinite().all()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_names_of_the_weights_stay_and_scales_come_beside_them() -> None:
    model = _model()
    before = set(model.state_dict())
    after = set(quantize(model).state_dict())
    assert before < after
    assert all("scale" in name for name in after - before)
    assert isinstance(model.get_submodule("layers.0.mlp.experts"), QuantizedExperts)
    assert isinstance(model.get_submodule("layers.0.self_attn.qkv_proj"), QuantizedLinear)
    assert type(model.lm_head.weight) is torch.nn.Parameter


def test_a_weight_that_is_no_number_is_named() -> None:
    model = _model()
    with torch.no_grad():
        model.get_parameter("layers.1.self_attn.k_proj.weight")[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.k_proj\.weight: a matrix"):
        quantize(model)
