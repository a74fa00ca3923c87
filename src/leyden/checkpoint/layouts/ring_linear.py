"""The layout of Ring-mini-linear-2.0 and Ring-flash-linear-2.0: ``BailingMoeLinearV2ForCausalLM`` (arXiv 2510.19338).

Lightning layers and softmax attention with grouped queries (:mod:`leyden.checkpoint.layouts.bailing`), whose heads norm
queries and keys and turn as many dims as lightning heads do. The projections of a softmax layer lie in one tensor, all
rows of q above all of k above all of v.

Which slopes the weights were trained with is open (docs/ring-linear.md): ``1 - i / (L - 1) + 1e-5`` unless the section
``leyden`` of config.json says ``lightning_slope_factor``.
"""

from collections.abc import Iterable
from typing import Any

import torch

from leyden.checkpoint.layouts.bailing import (
    COMMON_RULES,
    LATENT_SIZES,
    behind_the_last,
    dialect,
    in_layer,
    parse,
    read_fields,
    written,
)
from leyden.checkpoint.layouts.layout import Layout
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer

_ARCHITECTURE = "BailingMoeLinearV2ForCausalLM"
_SOFTMAX_RULES = in_layer(
    *((f"self_attn.{name}_proj.weight", f"attention.query_key_value.weight#{i}") for i, name in enumerate("qkv"))
)
_BOTH = ("linear_attention", "full_attention")

# The releases say all that the other layout may leave out, and programs differ about what an absent one means.
_DIALECT = dialect(
    "ring_linear",
    names={"num_key_value_heads": "num_key_value_heads"},
    defaults={},
    constants={},
    assumed={
        **dict.fromkeys(LATENT_SIZES, (None, "ling or leyden")),
        "rope_interleave": (False, "ling or leyden"),
    },
)


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    fields = read_fields(_DIALECT, data, "full_attention", source)
    fields["rotary_dim"] = fields["lightning_rotary_dim"]
    fields["qk_norm"] = _BOTH if data.get("use_qk_norm", True) else ()
    return parse(fields, data, source)


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    both = config.rotary_dim == config.lightning_rotary_dim
    wrong = {
        f"rotary_dim = {config.rotary_dim} and lightning_rotary_dim = {config.lightning_rotary_dim}": not both,
        f"qk_norm = {config.qk_norm}, which is of both kinds of layers or of none there": len(config.qk_norm) == 1,
    }
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": "bailing_moe_linear",
        **written(_DIALECT, config, "full_attention", wrong, dtype, tokenizer),
    }


def _left_out(config: ModelConfig, names: Iterable[str], source: str) -> list[str]:
    return behind_the_last(config, names)


RING_LINEAR = Layout(
    name="ring_linear",
    model_types=("bailing_moe_linear",),
    architectures=(_ARCHITECTURE,),
    rules=(*COMMON_RULES, *_SOFTMAX_RULES),
    read_config=_read_config,
    write_config=_write_config,
    left_out=_left_out,
    narrows=True,
)
