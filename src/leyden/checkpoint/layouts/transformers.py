"""The layout of transformers' native MiniMax (``MiniMaxForCausalLM``), written so that it computes our logits.

Its model differs from the released one in three ways, and each has a remedy that the directory itself carries:

- It turns the whole head by RoPE. Where ``rotary_dim < head_dim`` the rows of the query and key projections are
  reordered so that our pairs (i, i + R/2) become its pairs (i, i + D/2), and a ``longrope`` configuration, whose
  per-pair divisors are data, gives the turning pairs their frequencies and the others one of about 1e-30. What
  stretched those frequencies (position interpolation, YaRN) stands in our section of config.json.
- Its slopes are of another formula (``1 - l / (L - 1 + 1e-5) + 1e-5``, and no interpolation where the number of heads
  is no power of two). Its decays are buffers in the checkpoint and the file's values win, so ours are stored there.
- In bfloat16 it rounds decays, norms and router, and keeps its state rounded. config.json says ``float32``, so that it
  computes in float32, from matrices stored in any dtype, unless its user asks otherwise.

Its softmax layers have all the same window or none: ``sliding_attention`` layers are written as ``full_attention`` with
a ``sliding_window``, and a model that has both is refused.

Reading, a slope may lie as far from ours as the two formulas are apart, and each decay as far as that lets it.
"""

import functools
import math
from typing import Any

import torch

from leyden.checkpoint.layouts.dialect import CONSTANTS, LOGIT_FREE, OPTIONS_ASSUMED, SECTION, SHARED_NAMES, Dialect
from leyden.checkpoint.layouts.layout import Derived, Layout, token_ids
from leyden.checkpoint.layouts.minimax import COMMON_RULES
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.mixers import mixer_of
from leyden.model.mixers.lightning import LightningAttention
from leyden.ops import lightning_slopes
from leyden.tokenizer import Tokenizer

_QUERY = "layers.{layer}.self_attn.q_proj.weight"
_KEY = "layers.{layer}.self_attn.k_proj.weight"
_BLOCK_SIZE = 256
_STILL = 1e30
"""The divisor of the frequency of a pair that does not turn: at any position its angle is 0 in float32."""

_WHOLE_HEAD = ("default", "linear", "yarn")
"""The types of ``rope_parameters`` of a head that turns as a whole; Leyden calls them so too."""

_FORMULA_GAP = 1e-5
"""How far transformers' layer factor of the slopes lies from the released one, at most."""

_DIALECT = Dialect(
    layout="transformers",
    names={
        **SHARED_NAMES,
        "layer_types": "layer_types",
        "sliding_window": "sliding_window",
        "full_attn_alpha_factor": "full_attn_alpha_factor",
        "full_attn_beta_factor": "full_attn_beta_factor",
        "linear_attn_alpha_factor": "linear_attn_alpha_factor",
        "linear_attn_beta_factor": "linear_attn_beta_factor",
        "mlp_alpha_factor": "mlp_alpha_factor",
        "mlp_beta_factor": "mlp_beta_factor",
    },
    defaults={"tie_word_embeddings": False, "sliding_window": None},
    constants={key: value for key, value in CONSTANTS.items() if key != "sliding_window"},
    assumed={
        **OPTIONS_ASSUMED,
        "postnorm": (True, "minimax or leyden"),
        "shared_intermediate_size": (0, "minimax or leyden"),
        "lightning_norm_eps": (1e-6, "leyden"),
        "router": ("softmax_topk", "leyden"),
        "norm_placement": ("pre", "leyden"),
        "parallel_block": (False, "leyden"),
    },
    ignored=LOGIT_FREE | {"block_size", "rope_parameters", "rope_scaling", "rope_theta", "id2label", "label2id"},
)


def _rotary_rows(config: ModelConfig) -> torch.Tensor | None:
    """[D], the row of our head that stands at each row of theirs; None where the whole head turns."""
    R, D = config.rotary_dim, config.head_dim
    if R == D:
        return None
    still = (D - R) // 2
    halves = [range(R // 2), range(R, R + still), range(R // 2, R), range(R + still, D)]
    return torch.tensor([row for half in halves for row in half])


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """A head that turns in part is scaled as a whole there too, by ``attention_factor``."""
    R, D, theta = config.rotary_dim, config.head_dim, config.rope_theta
    if R == D:
        return {**config.rope_scaling.model_dump(), "rope_theta": theta}
    frequencies = config.rope.frequencies(R, torch.device("cpu")).tolist()
    turning = [theta ** (-2 * i / D) / frequency for i, frequency in enumerate(frequencies)]
    factors = turning + [_STILL] * ((D - R) // 2)
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": config.rope.scale,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    """``rotary_dim`` is the head's width, unless :func:`_rope_parameters` wrote another, and its scaling beside it."""
    fields = _DIALECT.read({**data, "head_dim": _head_dim(data)}, source) | _windows(data)
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    rope = {"rope_type": rope.get("type", "default"), "rope_theta": data.get("rope_theta"), **rope}
    rope = {key: value for key, value in rope.items() if value is not None and key != "type"}
    if rope["rope_type"] in _WHOLE_HEAD:
        fields["rotary_dim"] = fields["head_dim"]
        fields["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    else:
        fields["rotary_dim"] = 2 * sum(factor < _STILL for factor in rope.get("long_factor", []))
    config = ModelConfig.parse({**fields, "rope_theta": rope.get("rope_theta")}, source)
    if not _same(rope, _rope_parameters(config)):
        raise UserError(
            f"{source}: rope_parameters of type {rope['rope_type']!r} is neither {', '.join(_WHOLE_HEAD)} nor the "
            "longrope form in which Leyden writes a head that turns in part (docs/numerics.md); Leyden has no such "
            "rotary embedding."
        )
    return config


def _windows(data: dict[str, Any]) -> dict[str, Any]:
    """Its softmax layers, all called ``full_attention``, have the window that it says, if it says one."""
    kinds, window = data.get("layer_types"), data.get("sliding_window")
    if window is None or not isinstance(kinds, list):
        return {}
    if "full_attention" not in kinds:
        return {"sliding_window": None}
    return {"layer_types": ["sliding_attention" if kind == "full_attention" else kind for kind in kinds]}


def _same(given: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two ``rope_parameters`` turn alike; with equal factors long and short, the switch has no effect."""
    if ours["rope_type"] == "longrope":
        given, ours = ({**rope, "original_max_position_embeddings": None} for rope in (given, ours))
    return given.keys() == ours.keys() and all(_close(given[key], ours[key]) for key in ours)


def _close(given: Any, ours: Any) -> bool:
    if isinstance(ours, list):
        return isinstance(given, list) and len(given) == len(ours) and all(map(_close, given, ours))
    return math.isclose(given, ours, rel_tol=1e-6) if isinstance(ours, float) else given == ours


def _head_dim(data: dict[str, Any]) -> Any:
    """Absent or null means an even split of the hidden size."""
    if data.get("head_dim") is None and isinstance(data.get("num_attention_heads"), int):
        return data.get("hidden_size", 0) // data["num_attention_heads"]
    return data.get("head_dim")


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    if config.head_dim % 2:
        raise UserError(f"the transformers layout cannot express an odd head_dim, {config.head_dim}; use leyden.")
    unknown = sorted(set(config.layer_types) - {"linear_attention", "full_attention", "sliding_attention"})
    if unknown:
        raise UserError(
            f"the transformers layout cannot express layers of type {', '.join(unknown)}, which its code lacks; use "
            "leyden."
        )
    if {"full_attention", "sliding_attention"} <= set(config.layer_types):
        raise UserError(
            "the transformers layout cannot express a model with both full_attention and sliding_attention: its code "
            "gives all softmax layers the same window; use leyden."
        )
    kinds = ["full_attention" if kind == "sliding_attention" else kind for kind in config.layer_types]
    fields, rope = _DIALECT.write(config), _rope_parameters(config)
    if rope["rope_type"] not in _WHOLE_HEAD:
        fields[SECTION] |= {"rope_scaling": config.rope_scaling.model_dump()}
    if config.score_head:
        # What it calls a classifier with one label; its class leaves the output projection unread.
        fields[SECTION] |= {"score_head": True}
        fields |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "pad_token_id": _pad_id(tokenizer)}
    return {
        "architectures": ["MiniMaxForSequenceClassification" if config.score_head else "MiniMaxForCausalLM"],
        "model_type": "minimax",
        **fields,
        "layer_types": kinds,
        "rope_parameters": rope,
        "block_size": _BLOCK_SIZE,
        **token_ids(tokenizer),
        "dtype": "float32",
    }


def _pad_id(tokenizer: Tokenizer | None) -> int | None:
    """What its classifiers know the end of a padded row by: no token of a text, but the one that ends documents."""
    return None if tokenizer is None else tokenizer.eod_id


def _derived(config: ModelConfig, data: dict[str, Any]) -> list[Derived]:
    """The decay buffers of each lightning layer, formed in float64 from our float32 slopes."""
    H, B = config.num_attention_heads, data.get("block_size", _BLOCK_SIZE)
    shapes = {
        "slope_rate": (H, 1, 1),
        "query_decay": (H, B, 1),
        "key_decay": (H, B, 1),
        "diagonal_decay": (1, H, B, B),
    }
    layers = [i for i, kind in enumerate(config.layer_types) if mixer_of(kind) is LightningAttention]
    return [
        Derived(
            f"model.layers.{layer}.self_attn.{name}",
            shape,
            functools.partial(_decay, config, layer, B, name),
            functools.partial(_tolerance, config, B, name),
        )
        for layer in layers
        for name, shape in shapes.items()
    ]


def _decay(config: ModelConfig, layer: int, block_size: int, name: str) -> torch.Tensor:
    """float32; position i of a block counts from 1, and the state stands at the block's last token."""
    slopes = lightning_slopes(config.num_attention_heads, layer, config.num_hidden_layers)
    s_H11 = slopes.double()[:, None, None]
    i_B1 = torch.arange(1, block_size + 1, dtype=torch.float64)[:, None]
    if name == "slope_rate":
        return slopes[:, None, None].clone()
    if name == "query_decay":
        return torch.exp(-s_H11 * i_B1).float()
    if name == "key_decay":
        return torch.exp(-s_H11 * (block_size - i_B1)).float()
    return torch.exp(-s_H11 * (i_B1 - i_B1.T)).tril().float()[None]


def _tolerance(config: ModelConfig, block_size: int, name: str, dtype: torch.dtype) -> torch.Tensor | float:
    """The gap between the two formulas of the slopes, times the tokens it acts over, and the rounding of ``dtype``."""
    unit = torch.finfo(dtype).eps
    if name != "slope_rate":
        return _FORMULA_GAP * block_size + unit
    first = lightning_slopes(config.num_attention_heads, 0, config.num_hidden_layers).double()[:, None, None]
    return first * (1.01 * _FORMULA_GAP + unit)


TRANSFORMERS = Layout(
    name="transformers",
    model_types=("minimax",),
    rules=(
        *COMMON_RULES,
        WeightRule("score.weight", ("score.weight",)),
        WeightRule(_QUERY, (f"model.{_QUERY}",), _rotary_rows),
        WeightRule(_KEY, (f"model.{_KEY}",), _rotary_rows),
    ),
    read_config=_read_config,
    write_config=_write_config,
    derived=_derived,
)
