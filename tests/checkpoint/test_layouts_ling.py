"""Ling-2.5 and 2.6 open, compute what their formulas say, and go back bit for bit; what looks like them is refused."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ling_program import logits_of
from safetensors.torch import load_file, save_file

from leyden import Engine, Sampling
from leyden.checkpoint import load, read_config, save
from leyden.checkpoint.layouts import LAYOUTS
from leyden.checkpoint.stored_model import bindings_of
from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM, ModelConfig

SMALL: dict[str, Any] = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "layer_group_size": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "group_norm_size": 2,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
    "rope_theta": 600.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "intermediate_size": 24,
    "moe_intermediate_size": 10,
    "num_experts": 8,
    "num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
}
FLASH = SMALL | {
    "vocab_size": 157184,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "layer_group_size": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "group_norm_size": 4,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_theta": 6_000_000,
    "max_position_embeddings": 131072,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "num_nextn_predict_layers": 1,
    "eos_token_id": 156895,
}
TRILLION = FLASH | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "group_norm_size": 8,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 4,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}


def shape(**changes: Any) -> ModelConfig:
    given = SMALL | changes
    return LAYOUTS["ling"].read_config({key: value for key, value in given.items() if value is not None}, "config.json")


@pytest.fixture
def random_weights() -> Callable[[HybridLM], HybridLM]:
    """Fills in weights that are large enough that a wrong line shows, and biases that change the choice of experts."""

    def fill(model: HybridLM) -> HybridLM:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
        return model.eval()

    return fill


@pytest.fixture
def saved(random_weights: Callable[[HybridLM], HybridLM], tmp_path: Path) -> Callable[..., Path]:
    """Writes a small random model of a config.json under their names."""

    def write(dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        model = random_weights(HybridLM(shape(**changes))).to(dtype)
        save(model, None, tmp_path / "m", layout="ling")
        return tmp_path / "m"

    return write


def names_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a release, from the list of its names; of experts only the first and the last."""
    D, H, K, E = (config[x] for x in ("hidden_size", "num_attention_heads", "head_dim", "num_experts"))
    nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q, kv, layers, group = (config[x] for x in ("q_lora_rank", "kv_lora_rank", "num_hidden_layers", "layer_group_size"))
    yield from (("model.word_embeddings.weight", (config["vocab_size"], D)), ("model.norm.weight", (D,)))
    yield "lm_head.weight", (config["vocab_size"], D)

    def mlp(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{prefix}{name}_proj.weight", (width, D)) for name in ("gate", "up"))
        yield f"{prefix}down_proj.weight", (D, width)

    for i in range(layers):
        at = f"model.layers.{i}."
        yield from ((f"{at}{name}.weight", (D,)) for name in ("input_layernorm", "post_attention_layernorm"))
        if (i + 1) % group == 0 or i >= layers // group * group:
            yield from ((f"{at}attention.q_a_proj.weight", (q, D)), (f"{at}attention.q_a_layernorm.weight", (q,)))
            yield f"{at}attention.q_b_proj.weight", (H * (nope + rope), q)
            yield f"{at}attention.kv_a_proj_with_mqa.weight", (kv + rope, D)
            yield f"{at}attention.kv_a_layernorm.weight", (kv,)
            yield f"{at}attention.kv_b_proj.weight", (H * (nope + v), kv)
            yield f"{at}attention.dense.weight", (D, H * v)
        else:
            yield f"{at}attention.query_key_value.weight", (3 * H * K, D)
            yield from ((f"{at}attention.{name}_layernorm.weight", (K,)) for name in ("query", "key"))
            yield from ((f"{at}attention.g_proj.weight", (H * K, D)), (f"{at}attention.g_norm.weight", (H * K,)))
            yield f"{at}attention.dense.weight", (D, H * K)
        if i < config["first_k_dense_replace"]:
            yield from mlp(f"{at}mlp.", config["intermediate_size"])
        else:
            yield from ((f"{at}mlp.gate.weight", (E, D)), (f"{at}mlp.gate.expert_bias", (E,)))
            yield from mlp(f"{at}mlp.shared_experts.", config["moe_intermediate_size"])
            for expert in range(E):
                yield from mlp(f"{at}mlp.experts.{expert}.", config["moe_intermediate_size"])


@pytest.mark.parametrize("config", [SMALL, FLASH, TRILLION], ids=["small", "Ling-2.6-flash", "1T"])
def test_every_name_is_accounted_for(config: dict[str, Any]) -> None:
    """On the meta device, where a model weighs nothing."""
    bindings, _ = bindings_of(LAYOUTS["ling"], LAYOUTS["ling"].read_config(config, "config.json"))
    ours = {name: tuple(binding.part_shape) for binding in bindings for name in binding.theirs}
    assert ours == dict(names_of(config))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None, "num_hidden_layers": 6},
        {"rope_scaling": YARN},
        {"group_norm_size": 4, "partial_rotary_factor": 1.0, "num_shared_experts": 2, "tie_word_embeddings": True},
    ],
    ids=["with a tail", "one projection of queries", "YaRN", "tied, wider"],
)
def test_logits_are_those_of_the_formulas(saved: Callable[..., Path], changes: dict[str, Any]) -> None:
    directory = saved(**changes)
    config, tensors = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    tensors.setdefault("lm_head.weight", tensors["model.word_embeddings.weight"])
    tokens = torch.randint(61, (47,), generator=torch.Generator().manual_seed(1))
    expected, model = logits_of(config, tensors, tokens.tolist()), load(directory)[0]
    with torch.no_grad():
        single, double = model(tokens[None])[0], model.double()(tokens[None])[0]
        cache = Cache(model.config)
        steps = torch.cat([model(token[None, None], cache=cache)[0] for token in tokens])
    scale = expected.abs().max()
    assert (double - expected).abs().max() < 1e-10 * scale
    assert (steps - expected).abs().max() < 1e-10 * scale
    assert (single.double() - expected).abs().max() < 2e-5 * scale


def test_the_slopes_of_the_remote_code_are_a_setting(saved: Callable[..., Path]) -> None:
    directory = saved()
    path, tokens = directory / "config.json", list(range(40))
    config, tensors = json.loads(path.read_text()), load_file(directory / "model.safetensors")
    trained, remote = (logits_of(config, tensors, tokens, offset=offset) for offset in (0, 1))
    assert (trained - remote).abs().max() > 0.01
    path.write_text(json.dumps(config | {"leyden": {"lightning_slope_factor": "previous_layer"}}))
    (directory / "SHA256SUMS").unlink()
    with torch.no_grad():
        found = load(directory)[0].double()(torch.tensor([tokens]))[0]
    assert (found - remote).abs().max() < 1e-10 * remote.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_goes_there_and_back(saved: Callable[..., Path], tmp_path: Path, dtype: torch.dtype) -> None:
    directory = saved(dtype)
    model, _ = load(directory)
    assert model.config == shape()
    save(model, None, tmp_path / "again", layout="ling")
    one, other = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (directory / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_an_engine_serves_it(saved: Callable[..., Path]) -> None:
    directory = saved()
    config, tensors = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    text, made = [3, 1, 4, 1, 5, 9, 2, 6], []
    for _ in range(6):
        made.append(int(logits_of(config, tensors, text + made)[-1].argmax()))
    engine = Engine(load(directory)[0], kv_gigabytes=0.01, cache_gigabytes=0.01)
    (found,) = engine.generate([text], Sampling(max_tokens=6, temperature=0.0, ignore_eos=True))
    assert list(found.tokens) == made


def test_a_layer_of_multi_token_prediction_is_left_out_in_words(
    saved: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    directory = saved()
    expected = load(directory)[0].state_dict()
    change(directory, num_nextn_predict_layers=1)
    tensors = load_file(directory / "model.safetensors")
    tensors |= {f"model.layers.7.{name}.weight": torch.ones(3) for name in ("enorm", "hnorm", "eh_proj", "mlp.gate")}
    save_file(tensors, directory / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="leyden"):
        found = load(directory)[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "layers of multi-token prediction are left out" in caplog.text


def change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (directory / "SHA256SUMS").unlink(missing_ok=True)


def test_what_absent_keys_mean() -> None:
    assert shape().norm_topk_prob
    assert not shape(norm_topk_prob=False).norm_topk_prob
    bare = shape(head_dim=None, group_norm_size=None, n_group=None, topk_group=None, kv_lora_rank=None, hidden_size=512)
    assert (bare.head_dim, bare.lightning_norm_groups, bare.n_group, bare.topk_group, bare.kv_lora_rank) == (
        128, 4, 8, 4, 512,
    )  # fmt: skip
    assert shape(q_lora_rank=None).q_lora_rank is None
    assert shape(num_experts_per_tok=1).norm_topk_prob is False


def test_layers_behind_the_last_group_are_latent_attention() -> None:
    kinds = shape(num_hidden_layers=8, layer_group_size=3).layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "latent_attention"] == [2, 5, 6, 7]


@pytest.mark.parametrize(
    "said",
    [
        {"rope_theta": None, "rope_parameters": {"rope_theta": 600.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 600.0}, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 600.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
    ],
)
def test_the_base_stands_in_either_place(said: dict[str, Any]) -> None:
    assert shape(**said) == shape()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_theta": None}, "RoPE needs one base"),
        ({"rope_parameters": {"rope_theta": 5e5}}, r"given the bases \[600.0, 500000.0\]"),
        ({"rope_scaling": YARN | {"mscale": 0.5}}, "its YaRN multiplies what turns by 0.939"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type"),
        ({"linear_silu": True}, "linear_silu is True, and Leyden computes with False alone"),
        ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias is False"),
        ({"rope_interleave": False}, "rope_interleave is False"),
        ({"moe_shared_expert_intermediate_size": 99}, "programs that read this layout differ"),
        ({"rotary_dim": 4}, "rotary_dim is 4, and partial_rotary_factor 0.5 of head_dim 16 is 8"),
        ({"short_conv_kernel_size": 4, "kda_lower_bound": -5.0}, "kda_lower_bound, short_conv_kernel_size belong to K"),
        ({"layer_group_size": 9}, r"num_hidden_layers \(7\) must be at least layer_group_size \(9\)"),
        ({"first_k_dense_replace": 7}, "more than first_k_dense_replace"),
        ({"num_hidden_layers": 10**9}, "at most 4,096"),
        ({"num_hidden_layers": "7"}, "num_hidden_layers must be a whole number"),
        ({"attention_sinks": 4}, "attention_sinks is not known"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        shape(**changes)


@pytest.mark.parametrize("said", [None, [], ["BailingHybridForCausalLM"], ["BailingMoeV3ForCausalLM"], "x", [3]])
def test_another_architecture_under_the_same_type_is_refused(saved: Callable[..., Path], said: Any) -> None:
    directory = saved()
    change(directory, architectures=said)
    with pytest.raises(UserError, match=r"Several kinds of models have this model_type, and Leyden reads those"):
        read_config(directory)


def test_tensors_of_another_attention_are_refused(saved: Callable[..., Path]) -> None:
    directory = saved()
    tensors = load_file(directory / "model.safetensors") | {"model.layers.0.attention.A_log": torch.zeros(4)}
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"tensors of Kimi delta attention, as model.layers.0.attention.A_log"):
        load(directory)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "postnorm = True"),
        ({"postnorm": False, "num_local_experts": 0}, "a dense MLP"),
    ],
)
def test_another_model_is_not_written_so(
    random_model: Callable[..., HybridLM], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=f"the ling layout cannot express .*{says}"):
        save(random_model(**changes), None, tmp_path / "m", layout="ling")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_types": ("latent_attention",) + ("linear_attention",) * 6}, "the order of its layers"),
        ({"mlp_types": ("experts",) * 6 + ("dense",)}, "dense layers that are not the first"),
        ({"lightning_norm_eps": 1e-5}, "lightning_norm_eps = 1e-05"),
        ({"shared_intermediate_size": 11}, "shared_intermediate_size = 11"),
        ({"shared_expert_gate": True}, "a shared expert with a gate"),
    ],
)
def test_other_shapes_of_its_parts_are_not_written_so(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = ModelConfig.parse(shape().model_dump() | changes, "test")
    with torch.device("meta"):
        model = HybridLM(config)
    with pytest.raises(UserError, match=says):
        save(model, None, tmp_path / "m", layout="ling")
