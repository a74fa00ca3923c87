"""Options of attention layers that other models of the lightning family have, and which shapes they fit.

MiniMax-Text-01 has none of them. Whatever cannot compute with one asks :func:`options_said` and refuses, or computes in
another way; nothing leaves one out.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from leyden.model.config import ModelConfig

SlopeFactor = Literal["layer", "previous_layer", "none"]
LightningActivation = Literal["silu", "none"]
LightningScale = Literal["none", "1/sqrt(d)", "1/d"]

LIGHTNING_OPTIONS = ("lightning_slope_factor", "lightning_activation", "lightning_scale", "lightning_rotary_dim")
"""Of layers of ``linear_attention`` alone."""

ATTENTION_OPTIONS = (
    *LIGHTNING_OPTIONS,
    "lightning_norm_groups",
    "qk_norm",
    "attn_output_gate",
    "attn_logit_softcapping",
)
SCALE_OPTIONS = ("embedding_multiplier", "logits_scaling", "final_logit_softcapping")
OPTIONS = (*ATTENTION_OPTIONS, *SCALE_OPTIONS)
"""Fields of :class:`leyden.model.ModelConfig`; with its defaults a model is what MiniMax-Text-01 is."""

_LINEAR = frozenset({"linear_attention", "cosformer2_attention", "hgrn2_attention"})
_SOFTMAX = frozenset({"full_attention", "sliding_attention"})
_NORMED = ("linear_attention", "full_attention", "sliding_attention")
"""The kinds of layers that can norm their queries and keys."""


def options_said(config: "ModelConfig", names: Iterable[str] = OPTIONS) -> list[str]:
    """Those of the options ``names`` that a shape has set, as ``"qk_norm = ('full_attention',)"``."""
    fields = type(config).model_fields
    return [f"{name} = {getattr(config, name)!r}" for name in names if getattr(config, name) != fields[name].default]


def lightning_scale(config: "ModelConfig") -> float:
    """What the queries of lightning attention are multiplied by."""
    return {"none": 1.0, "1/sqrt(d)": config.head_dim**-0.5, "1/d": 1 / config.head_dim}[config.lightning_scale]


def option_problems(config: "ModelConfig") -> list[str]:
    """What does not fit together, each in a clause of its own."""
    kinds, problems = set(config.layer_types), []
    for said in options_said(config, LIGHTNING_OPTIONS):
        if "linear_attention" not in kinds:
            problems.append(f"{said}, and no layer is of type linear_attention; leave it out")
    groups, heads = config.lightning_norm_groups, config.num_attention_heads
    if groups > 1 and not kinds & _LINEAR:
        problems.append(f"lightning_norm_groups is {groups}, and no layer has linear attention; leave it out")
    if heads % groups:
        problems.append(f"lightning_norm_groups ({groups}) must divide num_attention_heads ({heads})")
    if config.lightning_rotary_dim > config.head_dim:
        problems.append(
            f"lightning_rotary_dim ({config.lightning_rotary_dim}) must not exceed head_dim ({config.head_dim})"
        )
    for kind in config.qk_norm:
        if kind not in _NORMED:
            problems.append(f"qk_norm names {kind}, which has no such norm; {', '.join(_NORMED)} have")
        elif kind not in kinds:
            problems.append(f"qk_norm names {kind}, and no layer is of this type; leave it out there")
    if len(set(config.qk_norm)) != len(config.qk_norm):
        problems.append(f"qk_norm names a kind of layer twice: {', '.join(config.qk_norm)}")
    if config.attn_output_gate and not kinds & _SOFTMAX:
        problems.append("attn_output_gate is true, and no layer has softmax attention; leave it out")
    if config.attn_logit_softcapping is not None:
        problems += _softcap_problems(config)
    if config.initialization == "induction" and (said := options_said(config)):
        problems.append(
            f'initialization = "induction" has no circuit for a model with {", ".join(said)}; leave '
            'these out, or take initialization = "xavier"'
        )
    return problems


def _softcap_problems(config: "ModelConfig") -> list[str]:
    said, kinds = f"attn_logit_softcapping is {config.attn_logit_softcapping:g}", set(config.with_nextn().layer_types)
    if "latent_attention" in kinds:
        return [f"{said}, and the scores of latent_attention are never capped; leave it out, or take other layers"]
    return [] if kinds & _SOFTMAX else [f"{said}, and no layer has softmax attention; leave it out"]


def latent_problems(config: "ModelConfig") -> list[str]:
    """What does not fit together in the shape of latent attention, each in a clause of its own."""
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    said = [name for name in (*names, "q_lora_rank") if getattr(config, name) is not None]
    said += ["rope_interleave"] if config.rope_interleave else []
    said += ["rope_scaling.mscale_all_dim"] if config.rope_scaling.mscale_all_dim else []
    if "latent_attention" not in config.with_nextn().layer_types:
        what = f"{', '.join(said)} for layers of type latent_attention, and there are none; leave it out, or say in"
        return [f"{what} layer_types which layers are"] if said else []
    problems, missing = [], [name for name in names if name not in said]
    if missing:
        problems.append(f"layer_types has latent_attention, which needs {', '.join(missing)}")
    elif config.rotary_dim != config.qk_rope_head_dim:
        problems.append(
            f"rotary_dim is {config.rotary_dim} and qk_rope_head_dim {config.qk_rope_head_dim}, and all softmax layers "
            "of a model turn as many dims; leave rotary_dim out, or set it to the same"
        )
    if config.initialization == "induction":
        problems.append(
            'initialization = "induction" does not know how a layer of latent_attention looks up what was read; '
            'take initialization = "xavier"'
        )
    return problems


def block_problems(config: "ModelConfig") -> list[str]:
    """What does not fit together among the options of a layer's norms and residuals."""
    asked = [name for name in ("norm_placement", "parallel_block") if getattr(config, name) not in ("pre", False)]
    if len(asked) > 1:
        return ['parallel_block has one norm, before both of its halves; leave norm_placement = "after" out']
    if asked and config.postnorm:
        return [
            f"{asked[0]} is {getattr(config, asked[0])}, and postnorm adds to the norm of the residual; set postnorm "
            "= false"
        ]
    if config.parallel_block and config.mlp_alpha_factor != 1:
        return [
            f"mlp_alpha_factor is {config.mlp_alpha_factor}, and with parallel_block the residual is weighted once, "
            "by the factor of the attention; set it to 1"
        ]
    return []
