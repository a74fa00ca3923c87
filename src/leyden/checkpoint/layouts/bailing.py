"""What the layouts of Ring-linear-2.0 and of Ling and Ring 2.5 and 2.6 share: names of tensors, keys of config.json.

Their layers come in groups of ``layer_group_size``, each of lightning layers and one of softmax or latent attention as
its last; layers behind the last whole group are all of that other kind. Residuals are plain pre-norm; the first layers
are dense, the others have experts behind the sigmoid router with groups, and a shared expert. Lightning heads norm
queries and keys, turn a part of their dims, have no SiLU and the scale ``head_dim^(-1/2)``; their output is normed in
``group_norm_size`` groups (docs/ring-linear.md, docs/ling.md).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from leyden.checkpoint.layouts.dialect import CONSTANTS, LOGIT_FREE, OPTIONS_ASSUMED, SECTION, SHARED_NAMES, Dialect
from leyden.checkpoint.layouts.layout import token_ids
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.model import ModelConfig
from leyden.model.config import LayerType
from leyden.tokenizer import Tokenizer

_log = logger(__name__)

_LAYER = "layers.{layer}."
_THEIR_LAYER = "model.layers.{layer}."
_MAX_LAYERS = 4096


def in_layer(*pairs: tuple[str, str]) -> tuple[WeightRule, ...]:
    """Tensors of a layer: our name and theirs."""
    return tuple(WeightRule(_LAYER + ours, (_THEIR_LAYER + theirs,)) for ours, theirs in pairs)


def lightning_rows(config: ModelConfig) -> torch.Tensor:
    """[3 H K]: which of our rows, q, k and v of each head in turn, is each of theirs, all q, all k and all v."""
    H, K = config.num_attention_heads, config.head_dim
    return torch.arange(3 * H * K).view(H, 3, K).transpose(0, 1).flatten()


COMMON_RULES = (
    WeightRule("embed_tokens.weight", ("model.word_embeddings.weight",)),
    WeightRule("norm.weight", ("model.norm.weight",)),
    WeightRule("lm_head.weight", ("lm_head.weight",)),
    *in_layer(*((f"{name}.weight", f"{name}.weight") for name in ("input_layernorm", "post_attention_layernorm"))),
    WeightRule(
        f"{_LAYER}self_attn.qkv_proj.weight", (f"{_THEIR_LAYER}attention.query_key_value.weight",), lightning_rows
    ),
    *in_layer(
        ("self_attn.q_norm.weight", "attention.query_layernorm.weight"),
        ("self_attn.k_norm.weight", "attention.key_layernorm.weight"),
        ("self_attn.output_gate.weight", "attention.g_proj.weight"),
        ("self_attn.norm.weight", "attention.g_norm.weight"),
        ("self_attn.out_proj.weight", "attention.dense.weight"),
        ("self_attn.o_proj.weight", "attention.dense.weight"),
    ),
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
"""All names but those of the projections of the layers that are not lightning attention."""

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
LATENT_SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""Of latent attention; both sides call them so."""

_FIXED: dict[str, Any] = {
    "lightning_activation": "none",
    "lightning_scale": "1/sqrt(d)",
}
_READ_BY_LAYOUT = ("qk_norm", "lightning_norm_groups", "lightning_rotary_dim", "lightning_slope_factor")
"""Options that their config.json, or our section of it, says."""


def dialect(
    layout: str,
    names: Mapping[str, str],
    defaults: Mapping[str, Any],
    constants: Mapping[str, Any],
    assumed: Mapping[str, tuple[Any, str]],
    ignored: frozenset[str] = frozenset(),
) -> Dialect:
    """How a config.json of the line is read, with what one layout has beyond the others: arguments as of Dialect."""
    options = {
        name: (_FIXED.get(name, value), layouts)
        for name, (value, layouts) in OPTIONS_ASSUMED.items()
        if name not in _READ_BY_LAYOUT
    }
    return Dialect(
        layout=layout,
        names={
            **{name: SHARED_NAMES[name] for name in _SAME},
            "intermediate_size": "moe_intermediate_size",
            "num_local_experts": "num_experts",
            "n_group": "n_group",
            "topk_group": "topk_group",
            "norm_topk_prob": "norm_topk_prob",
            "routed_scaling_factor": "routed_scaling_factor",
            "lightning_norm_groups": "group_norm_size",
            **names,
        },
        defaults={"tie_word_embeddings": False, **defaults},
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
            **constants,
        },
        assumed={
            **options,
            "postnorm": (False, "leyden"),
            "norm_placement": ("pre", "leyden"),
            "parallel_block": (False, "leyden"),
            **{f"{part}_{factor}_factor": (1.0, "leyden") for part in ("full_attn", "linear_attn", "mlp")
               for factor in ("alpha", "beta")},
            "router": ("sigmoid_groups", "leyden"),
            "group_score": ("top2_sum", "leyden"),
            "sliding_window": (None, "leyden"),
            "score_head": (False, "leyden"),
            **assumed,
        },
        ignored=LOGIT_FREE
        | {
            "first_k_dense_replace",
            "intermediate_size",
            "layer_group_size",
            "max_window_layers",
            "moe_shared_expert_intermediate_size",
            "mtp_loss_scaling_factor",
            "num_nextn_predict_layers",
            "num_shared_experts",
            "partial_rotary_factor",
            "rope_parameters",
            "rope_scaling",
            "rope_theta",
            "rotary_dim",
            "router_dtype",
            "seq_aux",
            "use_qk_norm",
        }
        | ignored,
        dense_layers=True,
    )  # fmt: skip


def layer_types(num_layers: int, group: int, last: LayerType) -> tuple[LayerType, ...]:
    """Of every whole group the last layer, and all layers behind the last whole group, are of the kind ``last``."""
    grouped = num_layers // group * group
    return tuple(last if (i + 1) % group == 0 or i >= grouped else "linear_attention" for i in range(num_layers))


def read_fields(said: Dialect, data: Mapping[str, Any], last: LayerType, source: str) -> dict[str, Any]:
    """Our fields, from their config.json, whose layers at the end of each group are of the kind ``last``.

    Raises:
        UserError: what is missing, or not computed.
    """
    fields = said.read(data, source)
    layers, group, dense = (
        _whole(data, key, default, source)
        for key, default in (("num_hidden_layers", None), ("layer_group_size", 5), ("first_k_dense_replace", 1))
    )
    if not 2 <= group <= layers <= _MAX_LAYERS or not 0 <= dense < layers:
        raise UserError(
            f"{source}: num_hidden_layers ({layers}) must be at least layer_group_size ({group}), which is at least 2, "
            f"and at most {_MAX_LAYERS:,}, and more than first_k_dense_replace ({dense})."
        )
    fields["layer_types"] = layer_types(layers, group, last)
    fields["mlp_types"] = ("dense",) * dense + ("experts",) * (layers - dense)
    fields["dense_intermediate_size"] = data.get("intermediate_size") if dense else None
    fields["lightning_norm_eps"] = fields["rms_norm_eps"]
    fields["lightning_rotary_dim"] = _turning(data, fields["head_dim"], source)
    if fields["num_experts_per_tok"] == 1:  # their code divides by the sum of several alone
        fields["norm_topk_prob"] = False
    fields |= _shared(data, source)
    fields["rope_theta"], fields["rope_scaling"] = _rope(data, source)
    return fields


def parse(fields: dict[str, Any], data: Mapping[str, Any], source: str) -> ModelConfig:
    """The shape of a model of these fields; modules for multi-token prediction are left out, which a line says."""
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
    """How many dims of a head turn; ``rotary_dim`` says it once more in some releases."""
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


def written(
    said: Dialect,
    config: ModelConfig,
    last: LayerType,
    wrong: Mapping[str, bool],
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """What config.json says in every layout of the line.

    Args:
        said: of the layout.
        config: of the model.
        last: the kind of the layers at the end of each group.
        wrong: what else the layout cannot express, and whether the model has it.
        dtype: of the matrices.
        tokenizer: None to write no ids of it.

    Raises:
        UserError: the layout cannot express the model.
    """
    fields = said.write(config)
    types, width = config.layer_types, config.intermediate_size
    groups = [group for group in range(2, len(types) + 1) if layer_types(len(types), group, last) == types]
    dense = config.mlp_kinds().count("dense")
    turning = config.lightning_rotary_dim / config.head_dim
    name = last.replace("_", " ")
    wrong = {
        f"the order of its layers (in groups, of which the last is {name})": not groups,
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
        **wrong,
    }
    if any(wrong.values()):
        problems = "; ".join(what for what, is_so in wrong.items() if is_so)
        raise UserError(f"the {said.layout} layout cannot express {problems}; use leyden.")
    for option in ("lightning_slope_factor", "router_aux_loss_coef"):
        fields[SECTION][option] = getattr(config, option)
    default = config.rope_scaling.rope_type == "default"
    return {
        **fields,
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


def behind_the_last(config: ModelConfig, names: Iterable[str]) -> list[str]:
    """The tensors of layers behind the last, which foretell further tokens."""
    return [name for name in names if _layer_of(name) >= config.num_hidden_layers]


def _layer_of(name: str) -> int:
    parts = name.split(".", 3)
    return int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdecimal() else -1
