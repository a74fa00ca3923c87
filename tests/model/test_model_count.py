"""Counting by arithmetic agrees with a model that is there."""

import pytest
import torch

from leyden.model import PRESETS, Cache, HybridLM, ModelConfig, count_model, prefill_flops, preset
from leyden.model.config import LayerType
from leyden.model.float32 import Float32Module
from leyden.model.mixers.states import RunningState

SHAPES = {
    **{name: preset(name) for name in PRESETS},
    "shared expert": preset("tiny", shared_intermediate_size=96, num_key_value_heads=1),
    "tied, all softmax": preset("tiny", tie_word_embeddings=True, layer_types=("full_attention",) * 8),
    "windows": preset("tiny", layer_types=("linear_attention", "sliding_attention") * 4, sliding_window=9),
    "cosformer2": preset("tiny", layer_types=("cosformer2_attention", "full_attention") * 4),
    "hgrn2": preset("tiny", layer_types=("hgrn2_attention", "full_attention") * 4),
    "latent": preset(
        "tiny",
        layer_types=("latent_attention", "linear_attention") * 4,
        kv_lora_rank=48,
        rotary_dim=16,
        q_lora_rank=80,
        qk_nope_head_dim=40,
        qk_rope_head_dim=16,
        v_head_dim=24,
    ),
    "first layer dense": preset("tiny", mlp_types=("dense",) + ("experts",) * 7, dense_intermediate_size=96),
    "options": preset(
        "tiny",
        qk_norm=("linear_attention", "full_attention"),
        attn_output_gate=True,
        lightning_norm_groups=2,
        logits_scaling=2.0,
    ),
    "sigmoid router": preset(
        "tiny", router="sigmoid_groups", n_group=4, topk_group=2, shared_intermediate_size=96, shared_expert_gate=False
    ),
    "norms after": preset("tiny", postnorm=False, norm_placement="after"),
    "parallel blocks": preset("tiny", postnorm=False, parallel_block=True, num_local_experts=0),
    "narrow heads": preset("tiny", head_dim=24, rotary_dim=8, num_attention_heads=6),
}


def on_meta(config: ModelConfig) -> HybridLM:
    with torch.device("meta"):
        return HybridLM(config)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    model, counted = on_meta(config), count_model(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert counted.parameters == sum(sizes.values())

    layers = {name: p for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim > 1}
    experts = sum(p.numel() for name, p in layers.items() if ".experts." in name)
    idle = experts - experts * config.num_experts_per_tok // max(1, config.num_local_experts)
    assert counted.active_parameters == sum(p.numel() for p in layers.values()) - idle
    assert counted.output_parameters == model.lm_head.weight.numel()

    kept = {id(p) for m in model.modules() if isinstance(m, Float32Module) for p in m.parameters()}
    assert counted.float32_parameters == sum(p.numel() for p in model.parameters() if id(p) in kept)


def test_a_cast_model_weighs_what_is_said() -> None:
    config = preset("tiny")
    model = HybridLM(config).bfloat16()
    assert count_model(config).weight_bytes(torch.bfloat16) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("kind", ["linear_attention", "cosformer2_attention", "hgrn2_attention"])
def test_memory_is_that_of_a_cache(kind: LayerType) -> None:
    model = HybridLM(preset("tiny", vocab_size=64, layer_types=(kind,) * 7 + ("full_attention",))).bfloat16().eval()
    cache = Cache(model.config)
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
    states = [layer.state for layer in cache.layers if isinstance(layer, RunningState)]
    assert count_model(model.config).state_bytes == sum(s.nbytes for s in states if s is not None)


def test_text_01_is_what_its_makers_say() -> None:
    counted = count_model(preset("text-01"))
    assert f"{counted.parameters / 1e9:.2f}B" == "456.09B"
    assert f"{counted.active_parameters / 1e9:.2f}B" == "45.94B"
    assert counted.state_bytes == 280 * 2**20
    assert counted.key_value_bytes_per_token(torch.bfloat16) == 40_960


def test_flops_and_memory_within_a_window_by_hand() -> None:
    """Of 5 tokens that see at most 2 keys; a last layer with a window leaves out the queries of all but one token."""
    shape = {"num_hidden_layers": 1, "hidden_size": 10, "num_attention_heads": 3, "num_key_value_heads": 1,
             "head_dim": 4, "rotary_dim": 4, "intermediate_size": 5, "num_local_experts": 0,
             "vocab_size": 7}  # fmt: skip
    config = preset("tiny", layer_types=("sliding_attention",), sliding_window=2, **shape)
    counted, whole = count_model(config), count_model(preset("tiny", layer_types=("full_attention",), **shape))
    assert counted.key_values_per_token == 0
    assert counted.fixed_bytes(torch.bfloat16) == 2 * whole.key_value_bytes_per_token(torch.bfloat16)
    matrices = 2 * (10 * 12 + 2 * 10 * 4 + 12 * 10) + 2 * 3 * 10 * 5 + 2 * 7 * 10
    assert counted.forward_flops_per_token(5) == matrices + 4 * 3 * 4 * (1 + 2 + 2 + 2 + 2) / 5
    assert counted.forward_flops_per_token(2) == whole.forward_flops_per_token(2)
    last_alone = 2 * 2 * 10 * 12 + 4 * 3 * 4 * 2 + 2 * 3 * 10 * 5 + 2 * 7 * 10
    assert prefill_flops(config, 5) == 5 * 2 * (2 * 10 * 4) + last_alone


def test_flops_by_hand() -> None:
    config = preset("tiny", num_hidden_layers=2, layer_types=("linear_attention", "full_attention"), hidden_size=10,
                    num_attention_heads=3, num_key_value_heads=1, head_dim=4, rotary_dim=4, intermediate_size=5,
                    num_local_experts=4, num_experts_per_tok=2, vocab_size=7)  # fmt: skip
    lightning = 2 * (10 * 36 + 10 * 12 + 12 * 10) + 4 * 3 * 4 * 4
    softmax = 2 * (10 * 12 + 2 * 10 * 4 + 12 * 10) + 4 * 3 * 4 * (1 + 2 + 3 + 4 + 5) / 5
    experts = 2 * (10 * 4 + 2 * 3 * 10 * 5)
    counted = count_model(config)
    assert counted.forward_flops_per_token(5) == lightning + softmax + 2 * experts + 2 * 7 * 10
    assert counted.training_flops_per_token(5) == 3 * counted.forward_flops_per_token(5)
    output = 2 * 7 * 10
    last_alone = 2 * (2 * 10 * 12) + 4 * 3 * 4 * 5 + experts
    assert prefill_flops(config, 5) == 5 * (lightning + experts + 2 * 2 * 10 * 4) + last_alone + output
    assert prefill_flops(config, 1) == counted.forward_flops_per_token(1)
