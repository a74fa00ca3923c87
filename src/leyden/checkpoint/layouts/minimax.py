"""The layout of the released MiniMax-Text-01 (and MiniMax-M1, the same architecture): config.json and tensor names.

Text-01 stores all of its 8,243 tensors in bfloat16; a float32 norm or router that bfloat16 holds without loss is
written so, and a released model passes through Leyden bit for bit.
"""

from typing import Any

import torch

from leyden.checkpoint.layouts.dialect import CONSTANTS, LOGIT_FREE, OPTIONS_ASSUMED, SHARED_NAMES, Dialect
from leyden.checkpoint.layouts.layout import Layout, token_ids
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer

_LAYER = "layers.{layer}."
_THEIR_LAYER = "model.layers.{layer}."
_MOE = _THEIR_LAYER + "block_sparse_moe."


def _in_layer(*names: str) -> tuple[WeightRule, ...]:
    """Tensors of a layer that both sides call alike."""
    return tuple(WeightRule(_LAYER + name, (_THEIR_LAYER + name,)) for name in names)


COMMON_RULES = (
    WeightRule("embed_tokens.weight", ("model.embed_tokens.weight",)),
    WeightRule("norm.weight", ("model.norm.weight",)),
    WeightRule("lm_head.weight", ("lm_head.weight",)),
    *_in_layer("input_layernorm.weight", "post_attention_layernorm.weight"),
    *_in_layer("self_attn.qkv_proj.weight", "self_attn.output_gate.weight"),
    *_in_layer("self_attn.norm.weight", "self_attn.out_proj.weight"),
    *_in_layer("self_attn.v_proj.weight", "self_attn.o_proj.weight"),
    WeightRule(_LAYER + "mlp.gate.weight", (_MOE + "gate.weight",)),
    WeightRule(
        _LAYER + "mlp.experts.gate_up_proj",
        (_MOE + "experts.{expert}.w1.weight", _MOE + "experts.{expert}.w3.weight"),
    ),
    WeightRule(_LAYER + "mlp.experts.down_proj", (_MOE + "experts.{expert}.w2.weight",)),
)
"""What the released layout shares with that of transformers: all but the query and key projections."""

_SHARED_EXPERT = (
    *(
        WeightRule(f"{_LAYER}mlp.shared.mlp.{name}.weight", (f"{_THEIR_LAYER}shared_mlp.{name}.weight",))
        for name in ("gate_proj", "up_proj", "down_proj")
    ),
    WeightRule(_LAYER + "mlp.shared.coefficient.weight", (_THEIR_LAYER + "coefficient.weight",)),
)

_DIALECT = Dialect(
    layout="minimax",
    names={
        **SHARED_NAMES,
        "layer_types": "attn_type_list",
        "rotary_dim": "rotary_dim",
        "rope_theta": "rope_theta",
        "postnorm": "postnorm",
        "shared_intermediate_size": "shared_intermediate_size",
        "full_attn_alpha_factor": "layernorm_full_attention_alpha",
        "full_attn_beta_factor": "layernorm_full_attention_beta",
        "linear_attn_alpha_factor": "layernorm_linear_attention_alpha",
        "linear_attn_beta_factor": "layernorm_linear_attention_beta",
        "mlp_alpha_factor": "layernorm_mlp_alpha",
        "mlp_beta_factor": "layernorm_mlp_beta",
    },
    defaults={"shared_intermediate_size": 0, "tie_word_embeddings": False},
    constants={**CONSTANTS, "shared_moe_mode": "sigmoid"},
    assumed={
        **OPTIONS_ASSUMED,
        "lightning_norm_eps": (1e-6, "leyden"),
        "router": ("softmax_topk", "leyden"),
        "norm_placement": ("pre", "leyden"),
        "parallel_block": (False, "leyden"),
        "shared_expert_gate": (True, "leyden"),
        "score_head": (False, "transformers or leyden"),
        "rope_scaling": ({"rope_type": "default"}, "transformers or leyden"),
    },
    ignored=LOGIT_FREE,
)

_ATTENTION_CODES = ("linear_attention", "full_attention")
"""What 0 and 1 mean in ``attn_type_list``."""


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    fields = _DIALECT.read(data, source)
    codes = fields["layer_types"]
    if not isinstance(codes, list) or any(code not in (0, 1) for code in codes):
        raise UserError(f"{source}: attn_type_list must list a 0 (lightning) or a 1 (softmax) for each layer.")
    fields["layer_types"] = [_ATTENTION_CODES[code] for code in codes]
    fields["shared_intermediate_size"] = _single(fields["shared_intermediate_size"], source)
    return ModelConfig.parse(fields, source)


def _single(width: Any, source: str) -> Any:
    """MiniMax-VL-01 writes the width of the shared expert as a list, ``[0]``."""
    if not isinstance(width, list):
        return width
    if len(set(width)) != 1:
        raise UserError(f"{source}: shared_intermediate_size is {width}; Leyden has one width for all layers.")
    return width[0]


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    fields = _DIALECT.write(config)
    unknown = sorted(set(config.layer_types) - set(_ATTENTION_CODES))
    if unknown:
        raise UserError(
            f"the minimax layout cannot express layers of type {', '.join(unknown)}, since attn_type_list has "
            f"{' and '.join(_ATTENTION_CODES)} alone; use leyden."
        )
    return {
        "architectures": ["MiniMaxText01ForCausalLM"],
        "model_type": "minimax_text_01",
        **fields,
        "attn_type_list": [_ATTENTION_CODES.index(kind) for kind in config.layer_types],
        **token_ids(tokenizer),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


MINIMAX = Layout(
    name="minimax",
    model_types=("minimax_text_01", "MiniMaxText01", "minimax_m1"),
    rules=(*COMMON_RULES, *_SHARED_EXPERT, *_in_layer("self_attn.q_proj.weight", "self_attn.k_proj.weight")),
    read_config=_read_config,
    write_config=_write_config,
    narrows=True,
)
