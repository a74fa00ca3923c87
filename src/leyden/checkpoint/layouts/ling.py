"""The layout of Ling-2.5, Ling-2.6, Ring-2.5 and Ring-2.6: ``BailingMoeV2_5ForCausalLM``.

Lightning layers and multi-head latent attention (:mod:`leyden.checkpoint.layouts.bailing`).

Their ``model_type``, ``bailing_hybrid``, is also that of Ling-3.0, whose layers are another operator (Kimi delta
attention): ``architectures`` tells the two apart. The slopes are those that the weights were trained with
(``1 - i / (L - 1) + 1e-5``) unless the section ``leyden`` says ``lightning_slope_factor``; the remote code that comes
with the weights has i - 1 there (docs/ling.md).

The layer of multi-token prediction that some releases have behind the others is left out, and a line says so.
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
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer

_ARCHITECTURE = "BailingMoeV2_5ForCausalLM"
_KEYS_OF_KDA = ("short_conv", "kda_")
_TENSORS_OF_KDA = (".A_log", ".dt_bias", "_conv1d.weight")

_LATENT_NAMES = ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
_LATENT_RULES = in_layer(*((f"self_attn.{name}.weight", f"attention.{name}.weight") for name in _LATENT_NAMES))

_DIALECT = dialect(
    "ling",
    names={name: name for name in LATENT_SIZES},
    # As their configuration class fills in. It has no norm_topk_prob, and their code always divides.
    defaults={
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
    constants={"rope_interleave": True},
    assumed={"rope_interleave": (True, "leyden")},
    ignored=frozenset({"num_key_value_heads", "qk_head_dim"}),
)


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    kda = sorted(key for key in data if key.startswith(_KEYS_OF_KDA))
    if kda:
        raise UserError(
            f"{source}: {', '.join(kda)} belong to Kimi delta attention, so that this is Ling-3.0 under the model_type "
            "that Ling-2.5 and 2.6 have too; Leyden does not compute that attention."
        )
    fields = read_fields(_DIALECT, data, "latent_attention", source)
    fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields["qk_norm"] = ("linear_attention",) if data.get("use_qk_norm", True) else ()
    return parse(fields, data, source)


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": "bailing_hybrid",
        **written(_DIALECT, config, "latent_attention", {}, dtype, tokenizer),
        "num_key_value_heads": config.num_attention_heads,
    }


def _left_out(config: ModelConfig, names: Iterable[str], source: str) -> list[str]:
    names = list(names)
    kda = [name for name in names if name.endswith(_TENSORS_OF_KDA)]
    if kda:
        raise UserError(
            f"{source} has tensors of Kimi delta attention, as {kda[0]}: this is Ling-3.0, whatever its config.json "
            "says, and Leyden does not compute that attention."
        )
    return behind_the_last(config, names)


LING = Layout(
    name="ling",
    model_types=("bailing_hybrid",),
    architectures=(_ARCHITECTURE,),
    rules=(*COMMON_RULES, *_LATENT_RULES),
    read_config=_read_config,
    write_config=_write_config,
    left_out=_left_out,
    narrows=True,
)
