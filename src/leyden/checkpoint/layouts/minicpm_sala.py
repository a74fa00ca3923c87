"""The layout of MiniCPM-SALA, ``MiniCPMSALAForCausalLM``: lightning layers, and softmax layers without positions.

After its config.json and the code that came with it. Lightning heads norm queries and keys, turn all their dims, have
no SiLU, the scale ``head_dim^(-1/2)`` and ALiBi's slopes in every layer alike; softmax layers have no positions, and a
gate. Embeddings are multiplied by ``scale_emb``, each branch by ``scale_depth / sqrt(num_hidden_layers)``, and what the
output projection reads is divided by ``hidden_size / dim_model_base``.

From ``sparse_config["dense_len"]`` tokens on, the released softmax layers choose blocks of keys (InfLLM-v2). Leyden
computes them whole, which is the same model below that length: the model is opened with so many positions, and what is
longer is refused like anything behind the last position. It is written without a ``sparse_config``.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from leyden.checkpoint.layouts.bailing import lightning_rows
from leyden.checkpoint.layouts.dialect import LOGIT_FREE, Dialect
from leyden.checkpoint.layouts.layout import Layout, token_ids
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.model import LayerType, ModelConfig
from leyden.tokenizer import Tokenizer

_log = logger(__name__)

_LAYER = "layers.{layer}."
_THEIR_LAYER = "model.layers.{layer}."
LIGHTNING_TYPE = "lightning-attn"
_SOFTMAX_TYPE = "minicpm4"


def in_layer(*pairs: tuple[str, str], kind: LayerType | None = None) -> tuple[WeightRule, ...]:
    """Weights of a layer of type ``kind``: our module and theirs."""
    return tuple(
        WeightRule(f"{_LAYER}{ours}.weight", (f"{_THEIR_LAYER}{theirs}.weight",), kind=kind) for ours, theirs in pairs
    )


RULES = (
    WeightRule("embed_tokens.weight", ("model.embed_tokens.weight",)),
    WeightRule("norm.weight", ("model.norm.weight",)),
    WeightRule("lm_head.weight", ("lm_head.weight",)),
    *in_layer(*((name, name) for name in ("input_layernorm", "post_attention_layernorm"))),
    *in_layer(*((f"mlp.{name}_proj", f"mlp.{name}_proj") for name in ("gate", "up", "down"))),
    WeightRule(
        f"{_LAYER}self_attn.qkv_proj.weight",
        tuple(f"{_THEIR_LAYER}self_attn.{name}_proj.weight" for name in ("q", "k", "v")),
        lightning_rows,
    ),
    *in_layer(
        ("self_attn.output_gate", "self_attn.z_proj"),
        ("self_attn.norm", "self_attn.o_norm"),
        ("self_attn.out_proj", "self_attn.o_proj"),
        kind="linear_attention",
    ),
    *in_layer(*((f"self_attn.{name}_norm", f"self_attn.{name}_norm") for name in ("q", "k"))),
    *in_layer(
        *((f"self_attn.{name}_proj", f"self_attn.{name}_proj") for name in ("q", "k", "v", "o")),
        ("self_attn.output_gate", "self_attn.o_gate"),
        kind="full_attention",
    ),
)
"""Of MiniCPM-SALA and HypeNet, whose lightning layers are one class."""

NAMES = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "lightning_scale",
    )
} | {"attn_output_gate": "attn_use_output_gate"}
"""Fields that both models call so."""

CONSTANTS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_use_rope": False,
    "rope_scaling": None,
}

ASSUMED: dict[str, tuple[Any, str]] = {
    "num_local_experts": (0, "leyden"),
    "shared_intermediate_size": (0, "leyden"),
    "postnorm": (False, "leyden"),
    **{f"{part}_alpha_factor": (1.0, "leyden") for part in ("full_attn", "linear_attn", "mlp")},
    "norm_placement": ("pre", "leyden"),
    "parallel_block": (False, "leyden"),
    "router": ("softmax_topk", "leyden"),
    "rotary_dim": (0, "leyden"),
    "rope_scaling": ({"rope_type": "default"}, "leyden"),
    "lightning_slope_factor": ("none", "leyden"),
    "lightning_activation": ("none", "leyden"),
    "lightning_norm_groups": (1, "leyden"),
    "attn_logit_softcapping": (None, "leyden"),
    "final_logit_softcapping": (None, "leyden"),
    "sliding_window": (None, "leyden"),
    "score_head": (False, "leyden"),
}

HEADS = {
    "lightning_nh": "num_attention_heads",
    "lightning_nkv": "num_attention_heads",
    "lightning_head_dim": "head_dim",
}
"""What lightning heads have of their own in config.json, and what of ours it has to be."""


def refuse_absent(data: Mapping[str, Any], needed: Iterable[str], source: str) -> None:
    """Refuse a config.json without keys whose default would decide what is computed.

    Raises:
        UserError: it lacks some; all at once.
    """
    absent = [key for key in needed if data.get(key) is None]
    if absent:
        raise UserError(
            f"{source} does not say {', '.join(absent)}, which decide what the model computes; copy them from the "
            "config.json that was released with the weights."
        )


def layer_types(data: Mapping[str, Any], softmax: str, source: str) -> list[str]:
    """Our types of layers, from ``mixer_types``.

    Raises:
        UserError: another type, or fewer or more than there are layers.
    """
    named, layers = data.get("mixer_types"), data.get("num_hidden_layers")
    known = {LIGHTNING_TYPE: "linear_attention", softmax: "full_attention"}
    if not isinstance(named, list) or len(named) != layers:
        count = len(named) if isinstance(named, list) else repr(named)
        raise UserError(f"{source}: mixer_types names {count} layers, and num_hidden_layers is {layers!r}.")
    other = sorted({str(one) for one in named if one not in known})
    if other:
        raise UserError(f"{source}: mixer_types has {', '.join(other)}; Leyden computes {' and '.join(known)} alone.")
    return [known[one] for one in named]


def lightning_fields(data: Mapping[str, Any], normed: bool, source: str) -> dict[str, Any]:
    """Our fields of lightning heads.

    Raises:
        UserError: their number or size differs from that of softmax heads, or their scale is another.
    """
    for key, ours in HEADS.items():
        if data.get(key) not in (None, data.get(ours)):
            raise UserError(
                f"{source}: {key} is {data[key]} and {ours} {data.get(ours)}; the heads of Leyden's lightning layers "
                "are as many and as wide as those of its softmax layers."
            )
    if data["lightning_scale"] not in ("1/sqrt(d)", "1/d"):
        raise UserError(f"{source}: lightning_scale is {data['lightning_scale']!r}; Leyden computes 1/sqrt(d) and 1/d.")
    return {
        "lightning_rotary_dim": data["head_dim"] if data["lightning_use_rope"] else 0,
        "lightning_norm_eps": data["rms_norm_eps"],
        "qk_norm": ["linear_attention"] if normed else [],
    }


def written(config: ModelConfig, fields: dict[str, Any], softmax: str) -> dict[str, Any]:
    """What both models' config.json has besides the fields of the same name."""
    kinds = {"linear_attention": LIGHTNING_TYPE, "full_attention": softmax}
    return {
        **fields,
        "mixer_types": [kinds[kind] for kind in config.layer_types],
        **{theirs: getattr(config, ours) for theirs, ours in HEADS.items()},
        "lightning_use_rope": config.lightning_rotary_dim > 0,
    }


def wrong_parts(config: ModelConfig) -> dict[str, bool]:
    """What neither model has, and whether a shape has it."""
    return {
        f"layers of type {', '.join(sorted(set(config.layer_types) - {'linear_attention', 'full_attention'}))}": bool(
            set(config.layer_types) - {"linear_attention", "full_attention"}
        ),
        f"lightning_rotary_dim = {config.lightning_rotary_dim} (all dims of a head turn there, or none)": (
            config.lightning_rotary_dim not in (0, config.head_dim)
        ),
        f"lightning_norm_eps = {config.lightning_norm_eps:g}, which is rms_norm_eps there": (
            config.lightning_norm_eps != config.rms_norm_eps
        ),
        'lightning_scale = "none"': config.lightning_scale == "none",
    }


def refuse_wrong(layout: str, wrong: Mapping[str, bool]) -> None:
    """Refuse a model that has what a layout cannot express.

    Raises:
        UserError: it has; all at once.
    """
    said = [what for what, is_so in wrong.items() if is_so]
    if said:
        raise UserError(f"the {layout} layout cannot express {'; '.join(said)}; use leyden.")


_DIALECT = Dialect(
    layout="minicpm_sala",
    names={**NAMES, "embedding_multiplier": "scale_emb"},
    defaults={"tie_word_embeddings": False},
    constants={**CONSTANTS, "use_output_norm": True, "use_output_gate": True},
    assumed=ASSUMED,
    ignored=LOGIT_FREE
    | {
        *HEADS,
        "dim_model_base",
        "lightning_use_rope",
        "max_position_embeddings",
        "mixer_types",
        "mup_denominator",
        "qk_norm",
        "scale_depth",
        "sparse_config",
    },
)
_NEEDED = (
    *("mixer_types", "max_position_embeddings", "scale_emb", "scale_depth", "dim_model_base", "qk_norm"),
    *("attn_use_rope", "attn_use_output_gate", "use_output_norm", "use_output_gate"),
    *("lightning_scale", "lightning_use_rope", "head_dim", "rms_norm_eps"),
)


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    refuse_absent(data, _NEEDED, source)
    fields = _DIALECT.read(data, source)
    fields["layer_types"] = layer_types(data, _SOFTMAX_TYPE, source)
    fields |= lightning_fields(data, bool(data["qk_norm"]), source)
    layers = data["num_hidden_layers"]
    if data.get("mup_denominator") not in (None, layers):
        raise UserError(
            f"{source}: mup_denominator is {data['mup_denominator']} and num_hidden_layers {layers}; programs that "
            "read this layout differ about which of them divides scale_depth then, so Leyden does not choose."
        )
    try:
        beta, scale = data["scale_depth"] / math.sqrt(layers), data["hidden_size"] / data["dim_model_base"]
    except (TypeError, ZeroDivisionError, ValueError):
        raise UserError(f"{source}: scale_depth, hidden_size and dim_model_base must be numbers above 0.") from None
    fields |= {f"{part}_beta_factor": beta for part in ("full_attn", "linear_attn", "mlp")}
    fields |= {"logits_scaling": scale, "max_position_embeddings": _positions(data, source)}
    return ModelConfig.parse(fields, source)


def _positions(data: Mapping[str, Any], source: str) -> Any:
    """How many tokens the softmax layers see whole."""
    positions, sparse = data["max_position_embeddings"], data.get("sparse_config")
    if sparse is None:
        return positions
    dense = sparse.get("dense_len") if isinstance(sparse, dict) else None
    if type(dense) is not int or dense < 2 or type(positions) is not int:
        raise UserError(
            f"{source}: sparse_config must say from how many tokens on it is sparse, dense_len; given {sparse!r:.80}."
        )
    if positions >= dense:
        _log.warning(
            "%s: from %s tokens on its softmax layers are sparse (InfLLM-v2), which Leyden does not compute; the model "
            "is opened with %s positions",
            *(source, f"{dense:,}", f"{dense - 1:,}"),
        )
    return min(positions, dense - 1)


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    fields = _DIALECT.write(config)
    layers = config.num_hidden_layers
    betas = {config.full_attn_beta_factor, config.linear_attn_beta_factor, config.mlp_beta_factor}
    depth, base = config.mlp_beta_factor * math.sqrt(layers), config.hidden_size / config.logits_scaling
    refuse_wrong(
        "minicpm_sala",
        wrong_parts(config)
        | {
            "residual factors that differ": len(betas) > 1,
            f"qk_norm of {', '.join(config.qk_norm)}": "full_attention" in config.qk_norm,
        },
    )
    return {
        "architectures": ["MiniCPMSALAForCausalLM"],
        "model_type": "minicpm_sala",
        **written(config, fields, _SOFTMAX_TYPE),
        "max_position_embeddings": config.max_position_embeddings,
        "qk_norm": bool(config.qk_norm),
        "scale_depth": _number(depth, lambda depth: depth / math.sqrt(layers), config.mlp_beta_factor),
        "dim_model_base": _number(base, lambda base: config.hidden_size / base, config.logits_scaling),
        "mup_denominator": layers,
        "sparse_config": None,
        **token_ids(tokenizer),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _number(value: float, back: Any, wanted: float) -> float | int:
    """The shortest number near ``value`` from which a reader computes ``wanted`` again, to the bit.

    Raises:
        UserError: there is none, so that the layout cannot express the model.
    """
    for digits in range(17):
        rounded = round(value, digits)
        if rounded > 0 and back(rounded) == wanted:
            return int(rounded) if rounded == int(rounded) else rounded
    for near in (value, math.nextafter(value, math.inf), math.nextafter(value, 0.0)):
        if back(near) == wanted:
            return near
    raise UserError(f"the minicpm_sala layout cannot express the factor {wanted!r} to its last bit; use leyden.")


MINICPM_SALA = Layout(
    name="minicpm_sala",
    model_types=("minicpm_sala",),
    rules=RULES,
    read_config=_read_config,
    write_config=_write_config,
    narrows=True,
)
