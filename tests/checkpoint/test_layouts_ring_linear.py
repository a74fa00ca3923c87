"""Ring-linear-2.0 opens, computes what its formulas say, and goes back bit for bit; what looks like it is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ling_program import logits_of
from safetensors.torch import load_file, save_file
from test_compressed_files import CHANNEL, compress

from leyden import Engine, Sampling
from leyden.checkpoint import convert, load, read_config, save
from leyden.checkpoint.export import export
from leyden.checkpoint.layouts import LAYOUTS
from leyden.checkpoint.model_directory import open_stored
from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.rules import shapes_of_tensors
from leyden.checkpoint.stored_model import bindings_of
from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM, ModelConfig, quantize
from leyden.parallel import Part

SMALL: dict[str, Any] = {
    "architectures": ["BailingMoeLinearV2ForCausalLM"],
    "model_type": "bailing_moe_linear",
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "layer_group_size": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "group_norm_size": 2,
    "rope_theta": 600.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "intermediate_size": 24,
    "moe_intermediate_size": 10,
    "moe_shared_expert_intermediate_size": 10,
    "num_experts": 8,
    "num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_router_enable_expert_bias": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "linear_silu": False,
    "use_qk_norm": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
}
MINI = SMALL | {
    "vocab_size": 157184,
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "layer_group_size": 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "group_norm_size": 4,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 131072,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "eos_token_id": 156892,
    "pad_token_id": 156892,
}
# The number of groups of norms, the width of an expert and the base are not in the source of the others.
FLASH = MINI | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "layer_group_size": 8,
    "num_attention_heads": 32,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "moe_shared_expert_intermediate_size": 1024,
}
ABSENT = object()


def shape(**changes: Any) -> ModelConfig:
    given = SMALL | changes
    return LAYOUTS["ring_linear"].read_config(
        {key: value for key, value in given.items() if value is not ABSENT}, "config.json"
    )


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small random model of a config.json under their names."""

    def write(dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        model, generator = HybridLM(shape(**changes)).to(dtype), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
        save(model, None, tmp_path / "m", layout="ring_linear")
        return tmp_path / "m"

    return write


def content(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")


def change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (directory / "SHA256SUMS").unlink(missing_ok=True)


def names_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a release, from the list of its names."""
    D, H, K, E = (config[x] for x in ("hidden_size", "num_attention_heads", "head_dim", "num_experts"))
    layers, group, shared = (config[x] for x in ("num_hidden_layers", "layer_group_size", "num_key_value_heads"))
    yield from (("model.word_embeddings.weight", (config["vocab_size"], D)), ("model.norm.weight", (D,)))
    yield "lm_head.weight", (config["vocab_size"], D)

    def mlp(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{prefix}{name}_proj.weight", (width, D)) for name in ("gate", "up"))
        yield f"{prefix}down_proj.weight", (D, width)

    for i in range(layers):
        at = f"model.layers.{i}."
        yield from ((f"{at}{name}.weight", (D,)) for name in ("input_layernorm", "post_attention_layernorm"))
        softmax = (i + 1) % group == 0 or i >= layers // group * group
        yield f"{at}attention.query_key_value.weight", ((H + 2 * (shared if softmax else H)) * K, D)
        yield from ((f"{at}attention.{name}_layernorm.weight", (K,)) for name in ("query", "key"))
        yield f"{at}attention.dense.weight", (D, H * K)
        if not softmax:
            yield from ((f"{at}attention.g_proj.weight", (H * K, D)), (f"{at}attention.g_norm.weight", (H * K,)))
        if i < config["first_k_dense_replace"]:
            yield from mlp(f"{at}mlp.", config["intermediate_size"])
        else:
            yield from ((f"{at}mlp.gate.weight", (E, D)), (f"{at}mlp.gate.expert_bias", (E,)))
            yield from mlp(f"{at}mlp.shared_experts.", config["moe_intermediate_size"])
            for expert in range(E):
                yield from mlp(f"{at}mlp.experts.{expert}.", config["moe_intermediate_size"])


@pytest.mark.parametrize("config", [SMALL, MINI, FLASH], ids=["small", "Ring-mini-linear-2.0", "flash"])
def test_every_name_is_accounted_for(config: dict[str, Any]) -> None:
    """On the meta device, where a model weighs nothing."""
    bindings, _ = bindings_of(LAYOUTS["ring_linear"], LAYOUTS["ring_linear"].read_config(config, "config.json"))
    assert shapes_of_tensors(bindings) == dict(names_of(config))


@pytest.mark.parametrize(
    "changes",
    [{}, {"group_norm_size": 4, "num_shared_experts": 2, "tie_word_embeddings": True, "num_hidden_layers": 6}],
    ids=["with a tail", "tied, wider"],
)
def test_logits_are_those_of_the_formulas(saved: Callable[..., Path], changes: dict[str, Any]) -> None:
    """The whole text, token by token, and packed beside another document."""
    directory = saved(**changes)
    config, tensors = content(directory)
    tensors.setdefault("lm_head.weight", tensors["model.word_embeddings.weight"])
    tokens = torch.randint(61, (47,), generator=torch.Generator().manual_seed(1))
    expected, model = logits_of(config, tensors, tokens.tolist()), load(directory)[0]
    with torch.no_grad():
        single, double = model(tokens[None])[0], model.double()(tokens[None])[0]
        cache = Cache(model.config)
        steps = torch.cat([model(token[None, None], cache=cache)[0] for token in tokens])
        packed = model(torch.cat([tokens[:13], tokens])[None], cu_seqlens=torch.tensor([0, 13, 60]))[0]
    scale = expected.abs().max()
    assert (double - expected).abs().max() < 1e-10 * scale
    assert (steps - expected).abs().max() < 1e-10 * scale
    assert (packed - torch.cat([expected[:13], expected])).abs().max() < 1e-10 * scale
    assert (single.double() - expected).abs().max() < 2e-5 * scale


def test_the_slopes_of_the_remote_code_are_a_setting(saved: Callable[..., Path]) -> None:
    directory, tokens = saved(), list(range(40))
    trained, remote = (logits_of(*content(directory), tokens, offset=offset) for offset in (0, 1))
    assert (trained - remote).abs().max() > 0.01
    change(directory, leyden={"lightning_slope_factor": "previous_layer"})
    with torch.no_grad():
        found = load(directory)[0].double()(torch.tensor([tokens]))[0]
    assert (found - remote).abs().max() < 1e-10 * remote.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_goes_there_and_back(saved: Callable[..., Path], tmp_path: Path, dtype: torch.dtype) -> None:
    """By each way in which models are written: from memory, from disk, and block by block from the parts of ranks."""
    directory = saved(dtype)
    model, _ = load(directory)
    assert model.config == shape()
    save(model, None, tmp_path / "0", layout="ring_linear")
    convert(directory, tmp_path / "1", layout="leyden")
    convert(tmp_path / "1", tmp_path / "2", layout="ring_linear")
    pieces = {name: TensorPiece.whole(parameter) for name, parameter in model.named_parameters()}
    export(pieces, model.config, None, tmp_path / "3", "ring_linear", dtype=dtype)
    config, tensors = content(directory)
    for again in ("0", "2", "3"):
        other_config, other = content(tmp_path / again)
        assert other_config == config
        assert tensors.keys() == other.keys()
        assert all(torch.equal(one.float(), other[name].float()) for name, one in tensors.items())


def test_a_rank_reads_its_part_of_the_rows_of_one_weight(saved: Callable[..., Path]) -> None:
    directory = saved()
    model, _ = load(directory)
    for weights in (open_stored(directory).weights, open_stored(directory).weights.in_memory()):
        for name, parameter in model.named_parameters():
            rows = len(parameter) // 2
            part = Part(tuple(parameter.shape), (((rows, len(parameter)),), *(((0, n),) for n in parameter.shape[1:])))
            assert torch.equal(weights.part(name, part), parameter[rows:]), name
            assert torch.equal(weights[name], parameter), name


def test_in_8_bits_it_is_the_rounded_model(saved: Callable[..., Path]) -> None:
    directory = saved()
    expected, found = quantize(load(directory)[0]), load(directory, int8="layers")[0]
    one, other = expected.state_dict(), found.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_compressed_tensor_is_cut_as_a_plain_one(saved: Callable[..., Path]) -> None:
    """The projections of a softmax layer in 8-bit floats with a scale a row."""
    directory = saved(torch.bfloat16)
    name = "model.layers.2.attention.query_key_value"
    tensors = load_file(directory / "model.safetensors")
    parts, expected = compress(tensors.pop(f"{name}.weight"), CHANNEL, torch.bfloat16, torch.Generator().manual_seed(0))
    save_file(tensors | {f"{name}.{leaf}": part for leaf, part in parts.items()}, directory / "model.safetensors")
    group = {"weights": CHANNEL, "targets": ["Linear"], "input_activations": None}
    section = {"quant_method": "compressed-tensors", "format": "any", "config_groups": {"group_0": group}}
    change(directory, quantization_config=section)
    model = load(directory)[0]
    found = torch.cat([*(model.get_parameter(f"layers.2.self_attn.{name}_proj.weight") for name in "qkv")])
    assert torch.equal(found, expected)
    read = load(directory, int8="layers")[0].state_dict()
    assert all(torch.equal(read[name], value) for name, value in quantize(model).state_dict().items())


def test_an_engine_serves_it(saved: Callable[..., Path]) -> None:
    directory, text, made = saved(), [3, 1, 4, 1, 5, 9, 2, 6], list[int]()
    for _ in range(6):
        made.append(int(logits_of(*content(directory), text + made)[-1].argmax()))
    engine = Engine(load(directory)[0], kv_gigabytes=0.01, cache_gigabytes=0.01)
    (found,) = engine.generate([text], Sampling(max_tokens=6, temperature=0.0, ignore_eos=True))
    assert list(found.tokens) == made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm_topk_prob": ABSENT}, "norm_topk_prob is missing"),
        ({"group_norm_size": ABSENT}, "group_norm_size is missing"),
        ({"rope_theta": ABSENT}, "RoPE needs one base"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
            "its YaRN multiplies what turns by 1.139",
        ),
        ({"linear_silu": True}, "linear_silu is True, and Leyden computes with False alone"),
        ({"score_function": "softmax"}, "score_function is 'softmax'"),
        ({"moe_shared_expert_intermediate_size": 99}, "programs that read this layout differ"),
        ({"layer_group_size": 9}, r"num_hidden_layers \(7\) must be at least layer_group_size \(9\)"),
        ({"first_k_dense_replace": 7}, "more than first_k_dense_replace"),
        ({"kv_lora_rank": 12}, "kv_lora_rank is not known"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        shape(**changes)


@pytest.mark.parametrize("said", [None, [], ["BailingMoeLinearForCausalLM"], "BailingMoeLinearV2ForCausalLM", [3]])
def test_another_architecture_under_the_same_type_is_refused(saved: Callable[..., Path], said: Any) -> None:
    directory = saved()
    change(directory, architectures=said)
    with pytest.raises(UserError, match=r"Several kinds of models have this model_type, and Leyden reads those"):
        read_config(directory)


def test_the_architecture_decides_and_not_the_type(saved: Callable[..., Path]) -> None:
    """Under the type of Ling-2.5 and 3.0 as well."""
    directory = saved()
    change(directory, model_type="bailing_hybrid")
    assert read_config(directory) == shape()


def test_a_tensor_of_other_rows_is_told_by_its_name(saved: Callable[..., Path]) -> None:
    directory = saved()
    change(directory, num_key_value_heads=1)
    with pytest.raises(UserError, match=r"layers.2.attention.query_key_value.weight is \[128, 32\] and should be \[96"):
        load(directory)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rotary_dim": 4}, "rotary_dim = 4 and lightning_rotary_dim = 8"),
        ({"qk_norm": ("linear_attention",)}, "qk_norm = "),
        ({"attn_output_gate": True}, "attn_output_gate"),
        ({"layer_types": ("full_attention",) + ("linear_attention",) * 6}, "of which the last is full attention"),
    ],
)
def test_other_shapes_of_its_parts_are_not_written_so(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = ModelConfig.parse(shape().model_dump() | changes, "test")
    with torch.device("meta"):
        model = HybridLM(config)
    with pytest.raises(UserError, match=says):
        save(model, None, tmp_path / "m", layout="ring_linear")
