"""The released MiniMax-Text-01 layout: each of its keys is accounted for, and a model passes through unchanged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leyden import Engine, Sampling
from leyden.checkpoint import load, save
from leyden.checkpoint.layouts import layout_of
from leyden.checkpoint.layouts.minimax import MINIMAX
from leyden.checkpoint.stored_model import bindings_of
from leyden.core.errors import UserError
from leyden.model import HybridLM, preset

TEXT_01 = {
    "architectures": ["MiniMaxText01ForCausalLM"],
    "attention_dropout": 0.0,
    "attn_type_list": ([0] * 7 + [1]) * 10,
    "auto_map": {"AutoConfig": "configuration_minimax_text_01.MiniMaxText01Config"},
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "layernorm_full_attention_alpha": 3.5565588200778455,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 3.5565588200778455,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 3.5565588200778455,
    "layernorm_mlp_beta": 1.0,
    "max_position_embeddings": 10240000,
    "model_type": "minimax_text_01",
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "postnorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000000,
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "4.45.2",
    "use_cache": True,
    "vocab_size": 200064,
}


def _text_01_keys() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released checkpoint, written out on their own."""
    keys: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (200064, 6144),
        "model.norm.weight": (6144,),
        "lm_head.weight": (200064, 6144),
    }
    softmax = {"q_proj": (8192, 6144), "k_proj": (1024, 6144), "v_proj": (1024, 6144), "o_proj": (6144, 8192)}
    lightning = {"qkv_proj": (24576, 6144), "output_gate": (8192, 6144), "norm": (8192,), "out_proj": (6144, 8192)}
    for layer in range(80):
        start = f"model.layers.{layer}."
        for name, shape in (softmax if layer % 8 == 7 else lightning).items():
            keys[f"{start}self_attn.{name}.weight"] = shape
        keys |= {f"{start}{norm}_layernorm.weight": (6144,) for norm in ("input", "post_attention")}
        keys[f"{start}block_sparse_moe.gate.weight"] = (32, 6144)
        for expert in range(32):
            of = f"{start}block_sparse_moe.experts.{expert}."
            keys |= {f"{of}w1.weight": (9216, 6144), f"{of}w2.weight": (6144, 9216), f"{of}w3.weight": (9216, 6144)}
    return keys


def test_all_8243_keys_of_text_01_are_accounted_for() -> None:
    bindings, _ = bindings_of(MINIMAX, preset("text-01"))
    ours = {name: binding.part_shape for binding in bindings for name in binding.theirs}
    assert len(ours) == sum(len(binding.theirs) for binding in bindings) == 8243
    assert ours == _text_01_keys()


def test_the_released_config_is_the_preset_and_back() -> None:
    config = MINIMAX.read_config(TEXT_01, "config.json")
    assert config == preset("text-01")
    written = MINIMAX.write_config(config, torch.bfloat16, None)
    kept = {"auto_map", "initializer_range", "output_router_logits", "transformers_version", "use_cache"}
    assert {**written, **{key: TEXT_01[key] for key in kept}} == {
        **TEXT_01,
        "torch_dtype": "bfloat16",
        "leyden": written["leyden"],
    }


M1 = {key: value for key, value in TEXT_01.items() if key not in ("bos_token_id", "eos_token_id")} | {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_minimax_m1.MiniMaxM1Config"},
    "model_type": "minimax_m1",
}
"""MiniMax-M1-40k and -80k: shape and names of Text-01 under another type, 10,240,000 positions, and no end token."""


def test_minimax_m1_is_the_same_shape_under_another_type() -> None:
    layout = layout_of(M1, "config.json")
    config = layout.read_config(M1, "config.json")
    assert layout is MINIMAX and config == preset("text-01") and config.max_position_embeddings == 10_240_000
    bindings, _ = bindings_of(layout, config)
    assert {name: binding.part_shape for binding in bindings for name in binding.theirs} == _text_01_keys()


def test_a_small_minimax_m1_opens_and_goes_on_without_an_end_token(
    random_model: Callable[..., HybridLM], tmp_path: Path
) -> None:
    model = random_model(max_position_embeddings=10_240_000)
    save(model, None, tmp_path / "m", layout="minimax")
    path = tmp_path / "m" / "config.json"
    said = json.loads(path.read_text())
    for key in ("bos_token_id", "eos_token_id"):
        del said[key]
    path.write_text(json.dumps(said | {key: M1[key] for key in ("architectures", "model_type")}))
    (tmp_path / "m" / "SHA256SUMS").unlink()
    found, _ = load(tmp_path / "m")
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(found(tokens), model(tokens))
    (completion,) = Engine(found, kv_gigabytes=0.01).generate([[3, 1, 4]], Sampling(max_tokens=5, temperature=0.0))
    assert len(completion.tokens) == 5 and completion.finish_reason == "length"


@pytest.mark.parametrize("width", [0, [0], [0, 0]])
def test_the_width_of_the_shared_expert_may_be_a_list(width: object) -> None:
    config = MINIMAX.read_config({**TEXT_01, "shared_intermediate_size": width}, "config.json")
    assert config.shared_intermediate_size == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"router_jitter_noise": 0.01}, "router_jitter_noise is 0.01"),
        ({"shared_moe_mode": "softmax"}, "shared_moe_mode is 'softmax'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is not known"),
        ({"quantization_config": {"bits": 8}}, "quantization_config is not known"),
        ({"attn_type_list": [0, 2]}, "attn_type_list must list"),
        ({"attn_type_list": [0, 1]}, "layer_types has 2 entries and num_hidden_layers is 80"),
        ({"shared_intermediate_size": [0, 8]}, "one width for all layers"),
        ({"rotary_dim": 63}, "must be even"),
        ({"num_local_experts": 0}, "no dense MLP"),
        ({"leyden": {"token_dorp": "position"}}, "did you mean 'token_drop'"),
    ],
)
def test_what_leyden_does_not_compute_is_refused(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        MINIMAX.read_config({**TEXT_01, **change}, "config.json")


def test_missing_fields_are_all_named() -> None:
    short = {key: value for key, value in TEXT_01.items() if key not in ("head_dim", "postnorm")}
    with pytest.raises(UserError, match="head_dim is missing; postnorm is missing"):
        MINIMAX.read_config(short, "config.json")


@pytest.mark.parametrize("changes", [{}, {"shared_intermediate_size": 24}, {"postnorm": False}])
def test_a_released_model_passes_through_bit_for_bit(
    random_model: Callable[..., HybridLM], tmp_path: Path, changes: dict
) -> None:
    model = random_model(torch.bfloat16, **changes)
    with torch.no_grad():  # as released: every tensor holds bfloat16 values
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    save(model, None, tmp_path / "released", layout="minimax")
    save(load(tmp_path / "released")[0], None, tmp_path / "ours")
    save(load(tmp_path / "ours")[0], None, tmp_path / "again", layout="minimax")
    released, again = (load_file(tmp_path / name / "model.safetensors") for name in ("released", "again"))
    assert {tensor.dtype for tensor in released.values()} == {torch.bfloat16}
    assert released.keys() == again.keys()
    assert all(torch.equal(released[name], again[name]) for name in released)
    assert {tensor.dtype for tensor in again.values()} == {torch.bfloat16}
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("released", "again")]
    assert configs[0] == configs[1]


def test_a_norm_that_bfloat16_would_round_stays_float32(random_model: Callable[..., HybridLM], tmp_path: Path) -> None:
    save(random_model(torch.bfloat16), None, tmp_path / "m", layout="minimax")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert stored["model.norm.weight"].dtype == torch.float32
    assert stored["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_local_experts": 0}, r"cannot express a dense MLP, num_local_experts = 0 \(use leyden\)"),
        ({"lightning_norm_eps": 1e-5}, r"lightning_norm_eps = 1e-05 \(it computes with 1e-06; use leyden\)"),
    ],
)
def test_what_the_layout_cannot_express_is_refused(
    random_model: Callable[..., HybridLM], tmp_path: Path, changes: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        save(random_model(**changes), None, tmp_path / "m", layout="minimax")
    assert list(tmp_path.iterdir()) == []
