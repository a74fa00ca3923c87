"""The layout of HypeNet, ``HypeNetForCausalLM``: Qwen3 models distilled into lightning layers and softmax layers.

After arXiv 2601.22156 and the configurations and code that its authors published (thunlp/hybrid-linear-attention). The
lightning layers are those of MiniCPM-SALA, every head with keys and values of its own; softmax layers are Qwen3's, with
norms of queries and keys, without positions, and with a gate. Residuals are plain.
"""

from typing import Any

import torch

from leyden.checkpoint.layouts.dialect import LOGIT_FREE, Dialect
from leyden.checkpoint.layouts.layout import Layout, token_ids
from leyden.checkpoint.layouts.minicpm_sala import (
    ASSUMED,
    CONSTANTS,
    HEADS,
    NAMES,
    RULES,
    layer_types,
    lightning_fields,
    refuse_absent,
    refuse_wrong,
    written,
    wrong_parts,
)
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer

_SOFTMAX_TYPE = "attn"

_DIALECT = Dialect(
    layout="hypenet",
    names={**NAMES, "max_position_embeddings": "max_position_embeddings"},
    defaults={"tie_word_embeddings": False, "lightning_scale": "1/sqrt(d)", "attn_use_output_gate": False},
    constants={
        **CONSTANTS,
        "attn_logits_scaling": None,
        "lightning_rope_scaling": None,
        "lightning_use_output_gate": True,
        "lightning_use_output_norm": True,
        "lightning_use_short_conv": False,
    },
    assumed={
        **ASSUMED,
        **{f"{part}_beta_factor": (1.0, "leyden") for part in ("full_attn", "linear_attn", "mlp")},
        "embedding_multiplier": (1.0, "leyden"),
        "logits_scaling": (1.0, "leyden"),
    },
    ignored=LOGIT_FREE
    | {*HEADS, "expand_kv_proj", "lightning_conv_size", "lightning_use_qk_norm", "lightning_use_rope", "mixer_types"},
)
_NEEDED = (
    *("mixer_types", "head_dim", "rms_norm_eps", "attn_use_rope", "lightning_use_rope", "lightning_use_qk_norm"),
    *("lightning_nkv", "lightning_use_output_gate", "lightning_use_output_norm"),
)
"""Keys whose defaults in their configuration class are those of another model."""


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    refuse_absent(data, _NEEDED, source)
    fields = _DIALECT.read(data, source)
    fields["layer_types"] = layer_types(data, _SOFTMAX_TYPE, source)
    fields |= lightning_fields(fields | data, bool(data["lightning_use_qk_norm"]), source)
    if "full_attention" in fields["layer_types"]:
        fields["qk_norm"] = [*fields["qk_norm"], "full_attention"]
    return ModelConfig.parse(fields, source)


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    fields = _DIALECT.write(config)
    softmax = "full_attention" in config.layer_types
    refuse_wrong(
        "hypenet",
        wrong_parts(config) | {"softmax layers without qk_norm": softmax and "full_attention" not in config.qk_norm},
    )
    return {
        "architectures": ["HypeNetForCausalLM"],
        "model_type": "hypenet",
        **written(config, fields, _SOFTMAX_TYPE),
        "lightning_use_qk_norm": "linear_attention" in config.qk_norm,
        **token_ids(tokenizer),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


HYPENET = Layout(
    name="hypenet",
    model_types=("hypenet",),
    rules=RULES,
    read_config=_read_config,
    write_config=_write_config,
    narrows=True,
)
