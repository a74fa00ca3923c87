"""The layout of llama.cpp's architecture ``minimax-01``: the keys of a GGUF file's header and its tensors' names.

llama.cpp's graph computes MiniMax-Text-01: lightning and softmax layers, a softmax head of which a part turns by RoPE
(``rope.dimension_count``), experts in every layer, and one DeepNorm factor for all residuals (``residual_scale``). What
has no key (training's fields, numbers of which a key holds 32 bits) stands in a section of ours, ``leyden.fields``,
which other programs pass over.

A file stacks the experts of a layer in one tensor, gate and up projections apart; here each expert's matrix is a tensor
of its own, ``NAME[EXPERT]``, as :mod:`leyden.checkpoint.gguf` cuts and joins them.
"""

from typing import Any

import numpy as np
import torch

from leyden.checkpoint.layouts.dialect import OPTIONS_ASSUMED, SECTION, Dialect
from leyden.checkpoint.layouts.layout import Layout
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.mixers import residual_factors
from leyden.tokenizer import Tokenizer

ARCHITECTURE = "minimax-01"
_MOST = 2**32 - 1
"""The largest number of most of the format's keys."""

_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.output_gate": "attn_gate",
    "self_attn.norm": "attn_norm_2",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
}

_RULES = (
    WeightRule("embed_tokens.weight", ("token_embd.weight",)),
    WeightRule("norm.weight", ("output_norm.weight",)),
    WeightRule("lm_head.weight", ("output.weight",)),
    *(
        WeightRule(f"layers.{{layer}}.{ours}.weight", (f"blk.{{layer}}.{theirs}.weight",))
        for ours, theirs in _IN_LAYER.items()
    ),
    WeightRule(
        "layers.{layer}.mlp.experts.gate_up_proj",
        ("blk.{layer}.ffn_gate_exps.weight[{expert}]", "blk.{layer}.ffn_up_exps.weight[{expert}]"),
    ),
    WeightRule("layers.{layer}.mlp.experts.down_proj", ("blk.{layer}.ffn_down_exps.weight[{expert}]",)),
)

_DIALECT = Dialect(
    layout="gguf",
    names={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "layer_types": "attention.recurrent_layers",
        "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "rotary_dim": "rope.dimension_count",
        "rope_theta": "rope.freq_base",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "num_local_experts": "expert_count",
        "num_experts_per_tok": "expert_used_count",
        "mlp_alpha_factor": "residual_scale",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    defaults={},
    constants={},
    assumed={
        **OPTIONS_ASSUMED,
        "postnorm": (True, "minimax or leyden"),
        "shared_intermediate_size": (0, "minimax or leyden"),
        "router": ("softmax_topk", "leyden"),
        "norm_placement": ("pre", "leyden"),
        "parallel_block": (False, "leyden"),
        "score_head": (False, "transformers or leyden"),
        "rope_scaling": ({"rope_type": "default"}, "transformers or leyden"),
    },
    ignored=frozenset({"attention.value_length", "full_attention_interval"}),
)

_ALPHAS = ("full_attn_alpha_factor", "linear_attn_alpha_factor", "mlp_alpha_factor")
_EXACT = (*_ALPHAS, "max_position_embeddings", "rope_theta", "rms_norm_eps", "lightning_norm_eps")
"""What the section of ours says beside training's fields."""


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    """``data`` has the header's keys of the architecture without its name, and the section of ours, if there is one."""
    data = {**data, "attention.recurrent_layers": _recurrent(data, source)}
    key_length = data.get("attention.key_length")
    if data.get("attention.value_length", key_length) != key_length:
        raise UserError(
            f"{source}: attention.value_length is {data['attention.value_length']} and attention.key_length "
            f"{key_length}; Leyden's heads have keys and values of one length."
        )
    if not data.get("expert_count"):
        raise UserError(f"{source}: expert_count is 0 or missing, and {ARCHITECTURE} has experts in every layer.")
    section = data.get(SECTION, {})
    fields = _DIALECT.read({**data, SECTION: {}}, source)
    fields["layer_types"] = ["linear_attention" if one else "full_attention" for one in fields["layer_types"]]
    stored = {name: fields[name] for name in _EXACT if name in fields}
    fields |= dict.fromkeys(_ALPHAS, fields["mlp_alpha_factor"])
    edited = {name for name, value in stored.items() if name in section and _stored(section[name]) != _stored(value)}
    if "mlp_alpha_factor" in edited:
        edited |= set(_ALPHAS)
    return ModelConfig.parse({**fields, **{k: v for k, v in section.items() if k not in edited}}, source)


def _recurrent(data: dict[str, Any], source: str) -> list[bool]:
    """Which layers are lightning attention: as listed, or all but each eighth, as llama.cpp has it."""
    listed, layers = data.get("attention.recurrent_layers"), data.get("block_count")
    interval = data.get("full_attention_interval", 8)
    if isinstance(listed, list) and all(isinstance(one, bool) for one in listed):
        return listed
    if listed is None and isinstance(layers, int) and layers < 1 << 16 and isinstance(interval, int) and interval > 0:
        return [bool((i + 1) % interval) for i in range(layers)]
    raise UserError(
        f"{source} does not say which of its {layers} layers are lightning attention: attention.recurrent_layers lists "
        f"a truth for each, or each full_attention_interval-th is softmax attention; they are {listed!r:.60} and "
        f"{interval!r:.60}."
    )


def _stored(value: Any) -> Any:
    """A number as a key of the header holds it."""
    if isinstance(value, float):
        return float(np.float32(value))
    return min(value, _MOST) if isinstance(value, int) else value


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The keys without the architecture's name, the section of ours as ``leyden``."""
    other = sorted(set(config.layer_types) - {"linear_attention", "full_attention"})
    if other:
        raise UserError(
            f"the gguf layout cannot express layers of type {', '.join(other)}: llama.cpp's {ARCHITECTURE} has "
            "linear_attention and full_attention alone (use leyden)."
        )
    factors = {residual_factors(config, i) for i in range(config.num_hidden_layers)} | {config.residual("mlp")}
    if len(factors) > 1 or {beta for _, beta in factors} != {1.0}:
        said = ", ".join(f"alpha {alpha:g} with beta {beta:g}" for alpha, beta in sorted(factors))
        raise UserError(
            f"the gguf layout cannot express the residual factors {said}: llama.cpp's {ARCHITECTURE} has one alpha for "
            "all layers, residual_scale, and betas of 1 (use minimax or leyden)."
        )
    theirs = _DIALECT.write(config)
    theirs["attention.recurrent_layers"] = [kind == "linear_attention" for kind in config.layer_types]
    theirs["attention.value_length"] = config.head_dim
    theirs["context_length"] = min(config.max_position_embeddings, _MOST)
    del theirs["tie_word_embeddings"]  # said by the output projection, which is there or not
    theirs[SECTION] |= {name: getattr(config, name) for name in _EXACT}
    return theirs


GGUF = Layout(
    name="gguf",
    model_types=(ARCHITECTURE,),
    rules=_RULES,
    read_config=_read_config,
    write_config=_write_config,
)
"""Of a file, where the others are of a directory, and so none of ``LAYOUTS``."""
