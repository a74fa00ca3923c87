"""MiniCPM-SALA and HypeNet open, compute what their formulas say, and go back bit for bit; others are refused."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sala_program import logits_of

from leyden import Engine, Sampling
from leyden.checkpoint import load, save
from leyden.checkpoint.layouts import LAYOUTS
from leyden.checkpoint.stored_model import bindings_of
from leyden.cli.options import AnyLayoutName, LayoutName
from leyden.core.errors import UserError
from leyden.model import Cache, HybridLM, ModelConfig

SMALL_SALA: dict[str, Any] = {
    "architectures": ["MiniCPMSALAForCausalLM"],
    "model_type": "minicpm_sala",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "lightning_nh": 4,
    "lightning_nkv": 4,
    "lightning_head_dim": 8,
    "lightning_scale": "1/sqrt(d)",
    "lightning_use_rope": True,
    "attn_use_rope": False,
    "qk_norm": True,
    "use_output_norm": True,
    "use_output_gate": True,
    "attn_use_output_gate": True,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 8,
    "mup_denominator": 5,
    "rope_theta": 600.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "mixer_types": ["minicpm4", "lightning-attn", "lightning-attn", "minicpm4", "lightning-attn"],
    "sparse_config": {"kernel_size": 32, "window_size": 2048, "topk": 64, "dense_len": 300},
}
SALA = SMALL_SALA | {
    "vocab_size": 73448,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "lightning_nh": 32,
    "lightning_nkv": 32,
    "lightning_head_dim": 128,
    "dim_model_base": 256,
    "mup_denominator": 32,
    "rope_theta": 10000.0,
    "max_position_embeddings": 524288,
    "mixer_types": [
        "minicpm4" if i in (0, 9, 16, 17, 22, 29, 30, 31) else "lightning-attn" for i in range(32)
    ],
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "block_size": 64, "topk": 64, "dense_len": 8192},
    "bos_token_id": 1,
    "eos_token_id": [2, 73440],
    "pad_token_id": 2,
}  # fmt: skip
SMALL_HYPENET: dict[str, Any] = {
    "architectures": ["HypeNetForCausalLM"],
    "model_type": "hypenet",
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "lightning_nh": 6,
    "lightning_nkv": 6,
    "lightning_head_dim": 8,
    "lightning_scale": "1/sqrt(d)",
    "lightning_use_rope": True,
    "lightning_use_qk_norm": True,
    "lightning_use_output_norm": True,
    "lightning_use_output_gate": True,
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "attn_logits_scaling": None,
    "expand_kv_proj": True,
    "rope_theta": 600.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "mixer_types": ["lightning-attn", "attn", "lightning-attn", "attn"],
}
_SIZES = {  # of the published configurations
    "2B": (28, 2048, 6144, 16, (2, 3, 6, 8, 9, 21, 25)),
    "5B": (36, 2560, 9728, 32, (0, 1, 7, 14, 15, 22, 24, 31, 33)),
    "9B": (36, 4096, 12288, 32, (1, 2, 4, 6, 7, 10, 24, 33, 34)),
}
HYPENETS = {
    size: SMALL_HYPENET
    | {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "lightning_head_dim": 128,
        **dict.fromkeys(("num_attention_heads", "lightning_nh", "lightning_nkv"), heads),
        "rope_theta": 1000000,
        "max_position_embeddings": 1048576,
        "mixer_types": ["attn" if i in softmax else "lightning-attn" for i in range(layers)],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "initializer_range": 0.02,
        "rope_scaling": None,
        "lightning_rope_scaling": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.6",
        "use_cache": True,
    }
    for size, (layers, width, inner, heads, softmax) in _SIZES.items()
}
BOTH = [pytest.param(SMALL_SALA, id="sala"), pytest.param(SMALL_HYPENET, id="hypenet")]


def shape(config: dict[str, Any], **changes: Any) -> ModelConfig:
    given = {key: value for key, value in (config | changes).items() if value != "absent"}
    return LAYOUTS[config["model_type"]].read_config(given, "config.json")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small random model of a config.json under their names, with weights so large that a wrong line shows."""

    def write(config: dict[str, Any], dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        model, generator = HybridLM(shape(config, **changes)), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else 0.25 * values)
        save(model.eval().to(dtype), None, tmp_path / "m", layout=config["model_type"])
        return tmp_path / "m"

    return write


def names_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a release, from the list of its names."""
    D, F, K = (config[key] for key in ("hidden_size", "intermediate_size", "head_dim"))
    width, shared = config["num_attention_heads"] * K, config["num_key_value_heads"] * K
    yield from (("model.embed_tokens.weight", (config["vocab_size"], D)), ("model.norm.weight", (D,)))
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], D)
    for i, kind in enumerate(config["mixer_types"]):
        at = f"model.layers.{i}."
        yield from ((f"{at}{name}.weight", (D,)) for name in ("input_layernorm", "post_attention_layernorm"))
        yield from ((f"{at}mlp.{name}_proj.weight", (F, D)) for name in ("gate", "up"))
        yield f"{at}mlp.down_proj.weight", (D, F)
        lightning, at = kind == "lightning-attn", f"{at}self_attn."
        yield from ((f"{at}q_proj.weight", (width, D)), (f"{at}o_proj.weight", (D, width)))
        yield from ((f"{at}{name}_proj.weight", (width if lightning else shared, D)) for name in ("k", "v"))
        yield f"{at}{'z_proj' if lightning else 'o_gate'}.weight", (width, D)
        if lightning:
            yield f"{at}o_norm.weight", (width,)
        if lightning or config["model_type"] == "hypenet":
            yield from ((f"{at}{name}_norm.weight", (K,)) for name in ("q", "k"))


@pytest.mark.parametrize(
    "config",
    [*BOTH, pytest.param(SALA, id="MiniCPM-SALA"), *(pytest.param(c, id=f"HypeNet-{s}") for s, c in HYPENETS.items())],
)
def test_every_name_is_accounted_for(config: dict[str, Any]) -> None:
    """On the meta device, where a model weighs nothing."""
    layout = LAYOUTS[config["model_type"]]
    bindings, _ = bindings_of(layout, layout.read_config(config, "config.json"))
    ours = {name: tuple(binding.part_shape) for binding in bindings for name in binding.theirs}
    assert ours == dict(names_of(config))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (SMALL_SALA, {}),
        (SMALL_SALA, {"qk_norm": False, "lightning_use_rope": False, "attn_use_output_gate": False}),
        (SMALL_SALA, {"lightning_scale": "1/d", "tie_word_embeddings": True, "num_key_value_heads": 4}),
        (SMALL_HYPENET, {}),
        (SMALL_HYPENET, {"lightning_use_qk_norm": False, "tie_word_embeddings": False}),
    ],
    ids=["sala", "sala without options", "sala, 1/d, tied", "hypenet", "hypenet, no norms in lightning"],
)
def test_logits_are_those_of_the_formulas(
    saved: Callable[..., Path], config: dict[str, Any], changes: dict[str, Any]
) -> None:
    directory = saved(config, **changes)
    said, tensors = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    tokens = torch.randint(61, (47,), generator=torch.Generator().manual_seed(1))
    expected, model = logits_of(said, tensors, tokens.tolist()), load(directory)[0]
    with torch.no_grad():
        single, double = model(tokens[None])[0], model.double()(tokens[None])[0]
        cache = Cache(model.config)
        steps = torch.cat([model(token[None, None], cache=cache)[0] for token in tokens])
        packed = model(torch.cat([tokens[:31], tokens])[None], cu_seqlens=torch.tensor([0, 31, 78]))[0, 31:]
    scale = expected.abs().max()
    assert (double - expected).abs().max() < 1e-10 * scale
    assert (steps - expected).abs().max() < 1e-10 * scale
    assert (packed - expected).abs().max() < 1e-10 * scale
    assert (single.double() - expected).abs().max() < 2e-5 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", BOTH)
def test_a_model_goes_there_and_back(
    saved: Callable[..., Path], tmp_path: Path, config: dict[str, Any], dtype: torch.dtype
) -> None:
    directory = saved(config, dtype)
    model, _ = load(directory)
    assert model.config == shape(config)
    save(model, None, tmp_path / "again", layout=config["model_type"])
    one, other = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (directory / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_factors_come_back_to_the_bit() -> None:
    config = shape(SALA)
    said = LAYOUTS["minicpm_sala"].write_config(config, torch.bfloat16, None)
    assert {key: said[key] for key in ("scale_emb", "scale_depth", "dim_model_base", "mup_denominator")} == {
        "scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256, "mup_denominator": 32,
    }  # fmt: skip
    assert config.mlp_beta_factor == 1.4 / math.sqrt(32) and config.logits_scaling == 16


@pytest.mark.parametrize("int8", ["none", "all"])
@pytest.mark.parametrize("config", BOTH)
def test_an_engine_serves_it(saved: Callable[..., Path], config: dict[str, Any], int8: Any) -> None:
    directory = saved(config)
    said, tensors = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    text, made = [3, 1, 4, 1, 5, 9, 2, 6], []
    model = load(directory, int8=int8)[0]
    for _ in range(6):
        if int8 == "none":
            logits = logits_of(said, tensors, text + made)[-1]
        else:  # what 8 bits compute is the model's own matter; the engine has to agree with it
            with torch.no_grad():
                logits = model(torch.tensor([text + made]))[0, -1]
        made.append(int(logits.argmax()))
    engine = Engine(model, kv_gigabytes=0.01, cache_gigabytes=0.01)
    (found,) = engine.generate([text], Sampling(max_tokens=6, temperature=0.0, ignore_eos=True))
    assert list(found.tokens) == made


def test_what_is_sparse_there_is_refused_in_words(saved: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="leyden"):
        directory = saved(SMALL_SALA)
    assert "from 300 tokens on its softmax layers are sparse (InfLLM-v2)" in caplog.text
    model = load(directory)[0]
    with torch.no_grad():
        model(torch.zeros(1, 299, dtype=torch.long))
    with pytest.raises(UserError, match="300 tokens are more than the 299 positions of this model"):
        model(torch.zeros(1, 300, dtype=torch.long))
    engine = Engine(model, kv_gigabytes=0.01, cache_gigabytes=0.01)
    with pytest.raises(UserError, match="299"):
        engine.generate([[1] * 300], Sampling(max_tokens=1))
    assert shape(SMALL_SALA, sparse_config=None).max_position_embeddings == 4096
    assert shape(SMALL_SALA, max_position_embeddings=200).max_position_embeddings == 200


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (SMALL_SALA, {"scale_emb": "absent", "qk_norm": "absent"}, "does not say scale_emb, qk_norm, which decide"),
        (SMALL_SALA, {"attn_use_rope": True}, "attn_use_rope is True, and Leyden computes with False alone"),
        (SMALL_SALA, {"rope_scaling": {"type": "longrope"}}, "rope_scaling is .*longrope"),
        (SMALL_SALA, {"mixer_types": ["minicpm4"] * 4}, "mixer_types names 4 layers, and num_hidden_layers is 5"),
        (SMALL_SALA, {"mixer_types": "minicpm4"}, "mixer_types names 'minicpm4' layers"),
        (SMALL_SALA, {"mixer_types": ["minicpm4"] * 4 + ["mamba2"]}, "mixer_types has mamba2; Leyden"),
        (SMALL_SALA, {"lightning_nkv": 2}, "lightning_nkv is 2 and num_attention_heads 4"),
        (SMALL_SALA, {"lightning_scale": "1"}, "lightning_scale is '1'"),
        (SMALL_SALA, {"mup_denominator": 32}, "programs that read this layout differ"),
        (SMALL_SALA, {"dim_model_base": 0}, "must be numbers above 0"),
        (SMALL_SALA, {"sparse_config": {"topk": 64}}, "from how many tokens on it is sparse, dense_len"),
        (SMALL_SALA, {"attention_sinks": 4}, "attention_sinks is not known"),
        (SMALL_HYPENET, {"lightning_nkv": "absent"}, "does not say lightning_nkv"),
        (SMALL_HYPENET, {"attn_logits_scaling": "log 362"}, "attn_logits_scaling is 'log 362'"),
        (SMALL_HYPENET, {"lightning_use_short_conv": True}, "lightning_use_short_conv is True"),
        (SMALL_HYPENET, {"mixer_types": ["kda", "attn", "gdn", "attn"]}, "mixer_types has gdn, kda"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(config: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        shape(config, **changes)


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (SMALL_SALA, {"lightning_norm_eps": 1e-5}, "lightning_norm_eps = 1e-05"),
        (SMALL_SALA, {"lightning_rotary_dim": 4}, "lightning_rotary_dim = 4"),
        (SMALL_SALA, {"mlp_beta_factor": 1.0}, "residual factors that differ"),
        (SMALL_SALA, {"qk_norm": ["full_attention"]}, "qk_norm of full_attention"),
        (SMALL_SALA, {"lightning_scale": "none"}, 'lightning_scale = "none"'),
        (SMALL_SALA, {"num_local_experts": 4, "num_experts_per_tok": 2}, "num_local_experts = 4"),
        (SMALL_HYPENET, {"qk_norm": ["linear_attention"]}, "softmax layers without qk_norm"),
        (SMALL_HYPENET, {"embedding_multiplier": 2.0}, "embedding_multiplier = 2.0"),
        (SMALL_HYPENET,
         {"layer_types": ["cosformer2_attention"] + ["full_attention"] * 3, "qk_norm": ["full_attention"]},
         "layers of type cosformer2_attention|lightning_slope_factor"),
    ],
)  # fmt: skip
def test_other_shapes_are_not_written_so(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    given = shape(config).model_dump() | changes
    if "linear_attention" not in given["layer_types"]:
        given |= {"lightning_slope_factor": "layer", "lightning_activation": "silu", "lightning_scale": "none"}
        given |= {"lightning_rotary_dim": 0}
    with torch.device("meta"):
        model = HybridLM(ModelConfig.parse(given, "test"))
    with pytest.raises(UserError, match=f"the {config['model_type']} layout cannot express .*({says})"):
        save(model, None, tmp_path / "m", layout=config["model_type"])


def test_the_command_line_knows_every_layout() -> None:
    assert set(LayoutName.__args__) == set(LAYOUTS)
    assert set(AnyLayoutName.__args__) == {*LAYOUTS, "gguf"}
