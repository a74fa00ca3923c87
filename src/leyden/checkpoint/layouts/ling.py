"""The layout of Ling-2.5, Ling-2.6, Ring-2.5 and Ring-2.6: ``BailingMoeV2_5ForCausalLM``.

Lightning layers and, as the last of each group of ``layer_group_size`` and in all layers behind the last whole group,
multi-head latent attention; plain pre-norm residuals; a few dense layers, then experts behind the sigmoid router with
groups, and a shared expert. Lightning heads norm queries and keys, turn a part of their dims, have no SiLU and the
scale ``head_dim^(-1/2)``; their output is normed in ``group_norm_size`` groups.

Their ``model_type``, ``bailing_hybrid``, is also that of Ling-3.0, whose layers are another operator (Kimi delta
attention): ``architectures`` tells the two apart. The slopes are those that the weights were trained with
(``1 - i / (L - 1) + 1e-5``) unless the section ``leyden`` says ``lightning_slope_factor``; the remote code that comes
with the weights has i - 1 there (docs/ling.md).

The layer of multi-token prediction that some releases have behind the others is left out, and a line says so.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from leyden.checkpoint.layouts.dialect import CONSTANTS, LOGIT_FREE, SECTION, SHARED_NAMES, Dialect
from leyden.checkpoint.layouts.layout import Layout, token_ids
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer

_log = logger(__name__)

_LAYER = "layers.{layer}."
_THEIR_LAYER = "model.layers.{layer}."
_ARCHITECTURE = "BailingMoeV2_5ForCausalLM"
_MAX_LAYERS = 4096
_KEYS_OF_KDA = ("short_conv", "kda_")
_TENSORS_OF_KDA = (".A_log", ".dt_bias", "_conv1d.weight")


def in_layer(*pairs: tuple[str, str]) -> tuple[WeightRule, ...]:
    """Tensors of a layer: our name and theirs."""
    return tuple(WeightRule(_LAYER + ours, (_THEIR_LAYER + theirs,)) for ours, theirs in pairs)


def lightning_rows(config: ModelConfig) -> torch.Tensor:
    """[3 H K]: which of our rows, q, k and v of each head in turn, is each of theirs, all q, all k and all v."""
    H, K = config.num_attention_heads, config.head_dim
    return torch.arange(3 * H * K).view(H, 3, K).transpose(0, 1).flatten()


OUTER_RULES = (
    WeightRule("embed_tokens.weight", ("model.word_embeddings.weight",)),
    WeightRule("norm.weight", ("model.norm.weight",)),
    WeightRule("lm_head.weight", ("lm_head.weight",)),
    *in_layer(*((f"{name}.weight", f"{name}.weight") for name in ("input_layernorm", "post_attention_layernorm"))),
)

LIGHTNING_RULES = (
    WeightRule(
        f"{_LAYER}self_attn.qkv_proj.weight", (f"{_THEIR_LAYER}attention.query_key_value.weight",), lightning_rows
    ),
    *in_layer(
        ("self_attn.q_norm.weight", "attention.query_layernorm.weight"),
        ("self_attn.k_norm.weight", "attention.key_layernorm.weight"),
        ("self_attn.output_gate.weight", "attention.g_proj.weight"),
        ("self_attn.norm.weight", "attention.g_norm.weight"),
        ("self_attn.out_proj.weight", "attention.dense.weight"),
    ),
)

FEED_FORWARD_RULES = (
    *in_layer(*((f"mlp.{name}_proj.weight", f"mlp.{name}_proj.weight") for name in ("gate", "up", "down"))),
    *in_layer(("mlp.gate.weight", "mlp.gate.weight"), ("mlp.gate.expert_bias", "mlp.gate.expert_bias")),
    WeightRule(
        f"{_LAYER}mlp.experts.gate_up_proj",
        tuple(f"{_THEIR_LAYER}mlp.experts.{{expert}}.{name}_proj.weight" for name in ("gate", "up")),
    ),
    WeightRule(f"{_LAYER}mlp.experts.down_proj", (f"{_THEIR_LAYER}mlp.experts.{{expert}}.down_proj.weight",)),
    *in_layer(
        *(
            (f"mlp.shared.mlp.{name}_proj.weight", f"mlp.shared_experts.{name}_proj.weight")
            for name in ("gate", "up", "down")
        )
    ),
)

_LATENT_NAMES = ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
_LATENT_RULES = in_layer(
    *((f"self_attn.{name}.weight", f"attention.{name}.weight") for name in _LATENT_NAMES),
    ("self_attn.o_proj.weight", "attention.dense.weight"),
)

_SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "max_position_embeddings",
    "num_experts_per_tok",
    "rms_norm_eps",
    "tie_word_embeddings",
)
_DIALECT = Dialect(
    layout="ling",
    names={
        **{name: SHARED_NAMES[name] for name in _SAME},
        "intermediate_size": "moe_intermediate_size",
        "num_local_experts": "num_experts",
        "n_group": "n_group",
        "topk_group": "topk_group",
        "norm_topk_prob": "norm_topk_prob",
        "routed_scaling_factor": "routed_scaling_factor",
        "lightning_norm_groups": "group_norm_size",
        "q_lora_rank": "q_lora_rank",
        "kv_lora_rank": "kv_lora_rank",
        "qk_nope_head_dim": "qk_nope_head_dim",
        "qk_rope_head_dim": "qk_rope_head_dim",
        "v_head_dim": "v_head_dim",
    },
    # As their configuration class fills in. It has no norm_topk_prob, and their code always divides.
    defaults={
        "tie_word_embeddings": False,
        "head_dim": 128,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_group": 8,
        "topk_group": 4,
        "group_norm_size": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    constants={
        "hidden_act": "silu",
        "attention_dropout": CONSTANTS["attention_dropout"],
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "use_bias": False,
        "use_qkv_bias": False,
        "linear_silu": False,
        "use_sliding_window": False,
        "moe_router_enable_expert_bias": True,
        "score_function": "sigmoid",
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "rope_interleave": True,
    },
    assumed={
        "postnorm": (False, "leyden"),
        **{f"{part}_{factor}_factor": (1.0, "leyden") for part in ("full_attn", "linear_attn", "mlp")
           for factor in ("alpha", "beta")},
        "norm_placement": ("pre", "leyden"),
        "parallel_block": (False, "leyden"),
        "router": ("sigmoid_groups", "leyden"),
        "group_score": ("top2_sum", "leyden"),
        "lightning_activation": ("none", "leyden"),
        "lightning_scale": ("1/sqrt(d)", "leyden"),
        "rope_interleave": (True, "leyden"),
        "attn_output_gate": (False, "leyden"),
        "embedding_multiplier": (1.0, "leyden"),
        "logits_scaling": (1.0, "leyden"),
        "attn_logit_softcapping": (None, "leyden"),
        "final_logit_softcapping": (None, "leyden"),
        "sliding_window": (None, "leyden"),
        "score_head": (False, "leyden"),
    },
    ignored=LOGIT_FREE
    | {
        "first_k_dense_replace",
        "intermediate_size",
        "layer_group_size",
        "max_window_layers",
        "moe_shared_expert_intermediate_size",
        "mtp_loss_scaling_factor",
        "num_key_value_heads",
        "num_nextn_predict_layers",
        "num_shared_experts",
        "partial_rotary_factor",
        "qk_head_dim",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_dim",
        "router_dtype",
        "seq_aux",
        "use_qk_norm",
    },
    dense_layers=True,
)  # fmt: skip


def layer_types(num_layers: int, group: int) -> tuple[str, ...]:
    """Of every whole group the last layer, and all layers behind the last whole group, are latent attention."""
    grouped = num_layers // group * group
    return tuple(
        "latent_attention" if (i + 1) % group == 0 or i >= grouped else "linear_attention" for i in range(num_layers)
    )


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    kda = sorted(key for key in data if key.startswith(_KEYS_OF_KDA))
    if kda:
        raise UserError(
            f"{source}: {', '.join(kda)} belong to Kimi delta attention, so that this is Ling-3.0 under the model_type "
            "that Ling-2.5 and 2.6 have too; Leyden does not compute that attention."
        )
    fields = _DIALECT.read(data, source)
    layers, group, dense = (
        _whole(data, key, default, source)
        for key, default in (("num_hidden_layers", None), ("layer_group_size", 5), ("first_k_dense_replace", 1))
    )
    if not 2 <= group <= layers <= _MAX_LAYERS or not 0 <= dense < layers:
        raise UserError(
            f"{source}: num_hidden_layers ({layers}) must be at least layer_group_size ({group}), which is at least 2, "
            f"and at most {_MAX_LAYERS:,}, and more than first_k_dense_replace ({dense})."
        )
    fields["layer_types"] = layer_types(layers, group)
    fields["mlp_types"] = ("dense",) * dense + ("experts",) * (layers - dense)
    fields["dense_intermediate_size"] = data.get("intermediate_size") if dense else None
    fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields["lightning_norm_eps"] = fields["rms_norm_eps"]
    fields["qk_norm"] = ("linear_attention",) if data.get("use_qk_norm", True) else ()
    fields["lightning_rotary_dim"] = _turning(data, fields["head_dim"], source)
    if fields["num_experts_per_tok"] == 1:  # their code divides by the sum of several alone
        fields["norm_topk_prob"] = False
    fields |= _shared(data, source)
    fields["rope_theta"], fields["rope_scaling"] = _rope(data, source)
    config = ModelConfig.parse(fields, source)
    if config.rope_scaling.scale != 1 and config.lightning_rotary_dim:
        raise UserError(
            f"{source}: its YaRN multiplies what turns by {config.rope_scaling.scale:.4g}, in lightning too, and "
            "Leyden's lightning layers have no such factor; with mscale equal to mscale_all_dim there is none."
        )
    if _whole(data, "num_nextn_predict_layers", 0, source):
        _log.warning("%s: layers of multi-token prediction are left out; logits do not need them", source)
    return config


def _whole(data: Mapping[str, Any], key: str, default: int | None, source: str) -> int:
    value = data.get(key, default)
    if type(value) is not int:
        raise UserError(f"{source}: {key} must be a whole number; given {value!r}.")
    return value


def _turning(data: Mapping[str, Any], head_dim: Any, source: str) -> int:
    """How many dims of a lightning head turn; ``rotary_dim`` says it once more in some releases."""
    part = data.get("partial_rotary_factor", 0.5)
    if not isinstance(part, int | float) or not isinstance(head_dim, int) or not 0 <= part <= 1:
        raise UserError(f"{source}: partial_rotary_factor must be a number from 0 to 1; given {part!r}.")
    turning = int(head_dim * part)
    if data.get("rotary_dim") not in (None, turning):
        raise UserError(
            f"{source}: rotary_dim is {data['rotary_dim']}, and partial_rotary_factor {part} of head_dim {head_dim} is "
            f"{turning}; they should agree."
        )
    return turning


def _shared(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The shared expert, which is as wide as so many routed ones."""
    count, width = data.get("num_shared_experts", 1) or 0, data.get("moe_intermediate_size")
    if type(count) is not int or type(width) is not int or count < 0:
        raise UserError(f"{source}: num_shared_experts and moe_intermediate_size must be whole numbers.")
    said = data.get("moe_shared_expert_intermediate_size")
    if said not in (None, width):
        raise UserError(
            f"{source}: moe_shared_expert_intermediate_size is {said} and moe_intermediate_size {width}; programs that "
            "read this layout differ about what the shared expert's width is then, so Leyden does not choose."
        )
    return {"shared_intermediate_size": count * width, "shared_expert_gate": count == 0}


def _rope(data: Mapping[str, Any], source: str) -> tuple[Any, dict[str, Any]]:
    """The base, at top level or in ``rope_parameters``, and the scaling."""
    found = [data[key] for key in ("rope_parameters", "rope_scaling") if isinstance(data.get(key), dict)]
    bases = [x for x in (data.get("rope_theta"), *(section.get("rope_theta") for section in found)) if x is not None]
    scalings = []
    for section in found:
        kind = section.get("rope_type", section.get("type", "default"))
        rest = {k: v for k, v in section.items() if k not in ("type", "rope_theta", "partial_rotary_factor")}
        scalings.append({**rest, "rope_type": kind})
    if not bases or any(base != bases[0] for base in bases) or any(one != scalings[0] for one in scalings):
        raise UserError(
            f"{source}: RoPE needs one base, rope_theta, at top level or in rope_parameters, and one scaling; given "
            f"the bases {bases} and the scalings {scalings}."
        )
    return bases[0], scalings[0] if scalings else {"rope_type": "default"}


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    fields = _DIALECT.write(config)
    types, width = config.layer_types, config.intermediate_size
    groups = [group for group in range(2, len(types) + 1) if layer_types(len(types), group) == types]
    dense = config.mlp_kinds().count("dense")
    turning = config.lightning_rotary_dim / config.head_dim
    wrong = {
        "the order of its layers (in groups, of which the last is latent attention)": not groups,
        "dense layers that are not the first": "dense" in config.mlp_kinds()[dense:],
        "no layer with experts": dense == len(types),
        f"lightning_norm_eps = {config.lightning_norm_eps:g}, which is rms_norm_eps there": (
            config.lightning_norm_eps != config.rms_norm_eps
        ),
        f"shared_intermediate_size = {config.shared_intermediate_size}, a multiple of intermediate_size there": bool(
            config.shared_intermediate_size % width
        ),
        "a shared expert with a gate": bool(config.shared_intermediate_size) and config.shared_expert_gate,
        f"lightning_rotary_dim = {config.lightning_rotary_dim}, a share of head_dim there": (
            int(config.head_dim * turning) != config.lightning_rotary_dim
        ),
        "YaRN with a factor of what turns": config.rope_scaling.scale != 1,
        "one expert a token whose weight is divided by itself": config.num_experts_per_tok == 1
        and config.norm_topk_prob,
    }
    if any(wrong.values()):
        raise UserError(
            f"the ling layout cannot express {'; '.join(what for what, is_so in wrong.items() if is_so)}; use leyden."
        )
    for name in ("lightning_slope_factor", "router_aux_loss_coef"):
        fields[SECTION][name] = getattr(config, name)
    default = config.rope_scaling.rope_type == "default"
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": "bailing_hybrid",
        **fields,
        "num_key_value_heads": config.num_attention_heads,
        "layer_group_size": groups[0],
        "first_k_dense_replace": dense,
        "intermediate_size": config.dense_width,
        "num_shared_experts": config.shared_intermediate_size // width,
        "use_qk_norm": "linear_attention" in config.qk_norm,
        "partial_rotary_factor": turning,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if default else config.rope_scaling.model_dump(),
        "num_nextn_predict_layers": 0,
        **token_ids(tokenizer),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _left_out(config: ModelConfig, names: Iterable[str], source: str) -> list[str]:
    """The tensors of layers behind the last, which foretell further tokens."""
    names = list(names)
    kda = [name for name in names if name.endswith(_TENSORS_OF_KDA)]
    if kda:
        raise UserError(
            f"{source} has tensors of Kimi delta attention, as {kda[0]}: this is Ling-3.0, whatever its config.json "
            "says, and Leyden does not compute that attention."
        )
    return [name for name in names if _layer_of(name) >= config.num_hidden_layers]


def _layer_of(name: str) -> int:
    parts = name.split(".", 3)
    return int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdecimal() else -1


LING = Layout(
    name="ling",
    model_types=("bailing_hybrid",),
    architectures=(_ARCHITECTURE,),
    rules=(*OUTER_RULES, *LIGHTNING_RULES, *_LATENT_RULES, *FEED_FORWARD_RULES),
    read_config=_read_config,
    write_config=_write_config,
    left_out=_left_out,
    narrows=True,
)
