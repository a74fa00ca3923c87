"""Shapes: what the presets are, what is derived, and what is refused."""

import pytest
import torch

from leyden.core.errors import UserError
from leyden.model import PRESETS, HybridLM, ModelConfig, preset


def parse(**fields: object) -> ModelConfig:
    return ModelConfig.parse(fields, "[model]")


def test_layer_types_default_to_one_softmax_layer_in_eight() -> None:
    assert parse(num_hidden_layers=17).layer_types == (("linear_attention",) * 7 + ("full_attention",)) * 2 + (
        "linear_attention",
    )


def test_alphas_default_to_deepnorm_or_one() -> None:
    config = parse(num_hidden_layers=80)
    assert config.mlp_alpha_factor == config.full_attn_alpha_factor == pytest.approx(3.5565588200778455, abs=1e-15)
    assert parse(num_hidden_layers=80, postnorm=False).linear_attn_alpha_factor == 1
    assert parse(mlp_alpha_factor=2.5).mlp_alpha_factor == 2.5


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LATENT = {
    "layer_types": ("latent_attention",) * 8,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}


def test_dims_that_turn_follow_from_latent_attention() -> None:
    assert parse(**LATENT).rotary_dim == 8


def test_a_written_configuration_reads_back() -> None:
    config = parse(num_hidden_layers=3, capacity_factor=1.5, rope_theta=5e6)
    assert ModelConfig.parse(config.model_dump(mode="json"), "config.json") == config


SIGMOID = {"router": "sigmoid_groups"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 3, "layer_types": ("full_attention",) * 2}, "has 2 entries and num_hidden_layers is 3"),
        ({"rotary_dim": 31}, r"'rotary_dim': must be even.*given: 31"),
        ({"rotary_dim": 66}, r"rotary_dim \(66\) must not exceed head_dim \(64\)"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, r"\(6\) must be a multiple of .* \(4\)"),
        ({"num_local_experts": 2, "num_experts_per_tok": 3}, r"num_experts_per_tok \(3\) must not exceed .* \(2\)"),
        ({"hiden_size": 64}, "unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"hidden_size": 0}, r"'hidden_size': .*greater than or equal to 1"),
        ({"layer_types": ("softmax",) * 8}, r"'layer_types\.0': .*'linear_attention', 'full_attention', 'sl"),
        ({"layer_types": ("sliding_attention",) * 8}, "sliding_window is missing; say how many keys a token sees"),
        ({"layer_types": ("cosformer2_attention",) * 8, "head_dim": 7, "rotary_dim": 2}, "head_dim .7. must be even"),
        ({"sliding_window": 64}, "sliding_window is 64, and no layer is of type sliding_attention"),
        ({"layer_types": ("sliding_attention",) * 8, "sliding_window": 0}, "'sliding_window'"),
        (
            {"kv_lora_rank": 8, "rope_interleave": True},
            "kv_lora_rank, rope_interleave for layers of type",
        ),
        ({"rope_scaling": {**YARN, "mscale_all_dim": 1.0}}, "rope_scaling.mscale_all_dim for layers of type latent_"),
        (LATENT | {"v_head_dim": None}, "layer_types has latent_attention, which needs v_head_dim"),
        (LATENT | {"rotary_dim": 4}, "rotary_dim is 4 and qk_rope_head_dim 8"),
        (LATENT | {"initialization": "induction"}, "induction. does not know how a layer of latent_attention looks"),
        ({"mlp_types": ("dense", "experts")}, "mlp_types has 2 entries and num_hidden_layers is 8"),
        ({"mlp_types": ("dense",) * 8}, "no layer with experts, and num_local_experts is 8; set it to 0"),
        ({"mlp_types": ("dense",) + ("experts",) * 7, "num_local_experts": 0}, "num_local_experts is 0; say how many"),
        ({"dense_intermediate_size": 64}, "dense_intermediate_size is 64, and no layer has a dense feed-forward"),
        ({"mlp_types": ("sparse",) * 8}, r"'mlp_types\.0': must be 'dense' or 'experts'"),
        ({"mlp_types": 3}, "'mlp_types'"),
        ({"router": "sigmoid"}, "'router'"),
        ({"n_group": 2, "norm_topk_prob": False}, "n_group is 2, norm_topk_prob is False, and router is .softmax_topk"),
        ({**SIGMOID, "n_group": 3}, r"n_group \(3\) must divide num_local_experts \(8\)"),
        ({**SIGMOID, "router_group_loss_coef": 0.1}, "router_group_loss_coef is 0.1, and n_group is 1"),
        ({"router_group_loss_coef": 0.1}, 'router_group_loss_coef is 0.1, and router is "softmax_topk"'),
        ({**SIGMOID, "n_group": 2, "topk_group": 3}, r"topk_group \(3\) must not exceed n_group"),
        ({**SIGMOID, "n_group": 8}, r"num_experts_per_tok \(2\) must not exceed the 1 experts of the 1 groups"),
        ({**SIGMOID, "num_local_experts": 0}, "num_local_experts is 0; leave it out"),
        ({"norm_placement": "after"}, "norm_placement is after, and postnorm adds .* set postnorm = false"),
        ({"parallel_block": True}, "parallel_block is True, and postnorm adds"),
        ({"parallel_block": True, "norm_placement": "after"}, "parallel_block has one norm"),
        (
            {"parallel_block": True, "postnorm": False, "mlp_alpha_factor": 1.5},
            "mlp_alpha_factor is 1.5, and with parallel_block the residual is weighted once",
        ),
        ({"shared_expert_gate": False}, "shared_expert_gate is false, and there is no shared expert"),
        ({"capacity_factor": 0}, "'capacity_factor'"),
        ({"layer_types": ("full_attention",) * 8, "lightning_scale": "1/d"}, "no layer is of type linear_attention"),
        ({"layer_types": ("full_attention",) * 8, "lightning_norm_groups": 2}, "no layer has linear attention"),
        ({"lightning_norm_groups": 3}, r"lightning_norm_groups \(3\) must divide num_attention_heads \(4\)"),
        ({"lightning_rotary_dim": 66}, r"lightning_rotary_dim \(66\) must not exceed head_dim \(64\)"),
        ({"lightning_rotary_dim": 3}, "'lightning_rotary_dim': must be even"),
        ({"lightning_scale": "1/sqrt(D)"}, "'lightning_scale'"),
        ({"lightning_slope_factor": "trained"}, "'lightning_slope_factor'"),
        ({"qk_norm": ("sliding_attention",)}, "qk_norm names sliding_attention, and no layer is of this type"),
        ({"qk_norm": ("hgrn2_attention",)}, "qk_norm names hgrn2_attention, which has no such norm"),
        ({"qk_norm": ("full_attention",) * 2}, "qk_norm names a kind of layer twice"),
        ({"layer_types": ("linear_attention",) * 8, "attn_output_gate": True}, "no layer has softmax attention"),
        ({"logits_scaling": 0}, "'logits_scaling'"),
        ({"final_logit_softcapping": 0}, "'final_logit_softcapping'"),
        ({"attn_logit_softcapping": -1}, "'attn_logit_softcapping'"),
        ({"layer_types": ("linear_attention",) * 8, "attn_logit_softcapping": 50}, "is 50, and no layer has softmax"),
        ({**LATENT, "attn_logit_softcapping": 50}, "the scores of latent_attention are never capped"),
        ({"initialization": "induction", "lightning_activation": "none"}, "no circuit for a model with lightning_act"),
        ({"rope_theta": float("inf")}, "'rope_theta'"),
        ({"num_hidden_layers": "many"}, "'num_hidden_layers'"),
    ],
)
def test_an_impossible_shape_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(**fields)


def test_several_problems_are_told_together() -> None:
    with pytest.raises(UserError, match=r"rotary_dim.*; num_experts_per_tok"):
        parse(rotary_dim=128, num_experts_per_tok=9)


def test_a_bias_balances_unless_a_loss_is_asked_for() -> None:
    assert parse(**SIGMOID).router_aux_loss_coef == 0
    assert parse(**SIGMOID, router_aux_loss_coef=0.001).router_aux_loss_coef == 0.001
    assert parse().router_aux_loss_coef == 0.01


def test_text_01_has_the_released_shape() -> None:
    config = preset("text-01")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (6144, 80, 200_064)
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == list(range(7, 80, 8))
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (64, 8, 128)
    assert (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size) == (32, 2, 9216)
    assert (config.rotary_dim, config.rope_theta, config.max_position_embeddings) == (64, 1e7, 10_240_000)
    assert config.mlp_alpha_factor == pytest.approx(3.5565588200778455, abs=1e-15)


def test_tiny_divides_by_two_on_every_axis() -> None:
    config = preset("tiny")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(config, name) % 2 == 0, name
    assert config.num_local_experts % 2 == config.intermediate_size % 2 == 0
    assert config.layer_types.count("full_attention") == 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model(name: str) -> None:
    config = preset(name)
    assert config.layer_types[-1] == "full_attention"  # a last lightning layer's slopes are too small for float32
    assert set(config.layer_types) == {"linear_attention", "full_attention"}
    with torch.device("meta"):
        assert len(HybridLM(config).layers) == config.num_hidden_layers


def test_a_preset_takes_changes() -> None:
    assert preset("70m", num_hidden_layers=16).layer_types.count("full_attention") == 2
    with pytest.raises(UserError, match="model preset 'tinny' is unknown; did you mean 'tiny'"):
        preset("tinny")
    with pytest.raises(UserError, match=r"model preset 'tiny': .*did you mean 'vocab_size'"):
        preset("tiny", vocabsize=3)


def test_one_kind_of_feed_forward_is_said_in_one_way() -> None:
    """So that a configuration that comes back from another layout is the same."""
    assert preset("tiny", mlp_types=("experts",) * 8) == preset("tiny")
    assert preset("tiny", mlp_types=["dense"] * 8, num_local_experts=0) == preset("tiny", num_local_experts=0)
    mixed = preset("tiny", mlp_types=("dense", *["experts"] * 7))
    assert mixed.expert_layers() == list(range(1, 8))
    assert mixed.expert_layers(range(2)) == [1]
    assert mixed.expert_layers(range(0)) == []
    assert mixed.layer_kinds()[0] == ("linear_attention", "dense")
    assert mixed.dense_width == mixed.intermediate_size
