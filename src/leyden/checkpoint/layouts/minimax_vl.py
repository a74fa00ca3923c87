"""The layout of the released MiniMax-VL-01: MiniMax-Text-01, a vision tower, and what carries its features over.

config.json has the language model's under ``text_config`` and the tower's under ``vision_config``; tensors have CLIP's
names, among them ``pre_layrnorm`` as CLIP spells it. The norm behind CLIP's last layer is not stored, since nothing
reads what it makes. The 28 canvases stand in the processor's file in the release, and here in config.json as well.
"""

from typing import Any

import torch

from leyden.checkpoint.layouts.dialect import LOGIT_FREE
from leyden.checkpoint.layouts.layout import Layout, token_ids
from leyden.checkpoint.layouts.minimax import MINIMAX
from leyden.checkpoint.rules import WeightRule
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.vision import RELEASED_PINPOINTS
from leyden.tokenizer import Tokenizer

_TEXT, _TOWER = "language_model.", "vision_tower.vision_model."
_THEIR_LAYER = f"{_TOWER}encoder.layers.{{layer}}."
_LINEARS = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")


def _both(ours: str, theirs: str) -> tuple[WeightRule, ...]:
    """A weight and its bias."""
    return tuple(WeightRule(f"{ours}.{part}", (f"{theirs}.{part}",)) for part in ("weight", "bias"))


_VISION_RULES = (
    WeightRule("vision.tower.class_embedding", (f"{_TOWER}embeddings.class_embedding",)),
    *(
        WeightRule(f"vision.tower.{name}.weight", (f"{_TOWER}embeddings.{name}.weight",))
        for name in ("patch_embedding", "position_embedding")
    ),
    *_both("vision.tower.pre_layernorm", f"{_TOWER}pre_layrnorm"),
    *(
        rule
        for name in (*_LINEARS, "layer_norm1", "layer_norm2")
        for rule in _both(f"vision.tower.layers.{{layer}}.{name}", f"{_THEIR_LAYER}{name}")
    ),
    *(rule for n in (1, 2) for rule in _both(f"vision.projector.linear_{n}", f"multi_modal_projector.linear_{n}")),
    WeightRule("vision.image_newline", ("image_newline",)),
)

_SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "layer_norm_eps",
    "hidden_act",
)
"""Fields of ``vision_config`` that Leyden calls so."""

_VISION_CONSTANTS = {"model_type": "clip_vision_model", "num_channels": 3, "attention_dropout": 0.0}
_VISION_IGNORED = LOGIT_FREE | {"initializer_factor", "projection_dim", "vocab_size"}
_CONSTANTS = {
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "multimodal_projector_bias": True,
}
_IGNORED = LOGIT_FREE | {"ignore_index", "image_seq_length", "model_type", "tie_word_embeddings"}


def _read_config(data: dict[str, Any], source: str) -> ModelConfig:
    text, vision = data.get("text_config"), data.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise UserError(f"{source} needs the sections text_config and vision_config; it lacks one.")
    problems = [
        f"{where}{key} is {given[key]!r}, and Leyden computes with {value!r} alone"
        for where, given, constants in (("", data, _CONSTANTS), ("vision_config.", vision, _VISION_CONSTANTS))
        for key, value in constants.items()
        if given.get(key, value) != value
    ]
    problems += [f"vision_config.{key} is missing" for key in _SAME if key not in vision]
    problems += [] if "image_token_index" in data else ["image_token_index is missing"]
    known = {*_CONSTANTS, *_IGNORED, "text_config", "vision_config", "image_token_index", "image_grid_pinpoints"}
    known |= {"process_image_mode"}
    problems += [
        f"{where}{key} is not known (remove it if it does not change what the model computes)"
        for where, given, names in (
            ("", data, known),
            ("vision_config.", vision, {*_SAME, *_VISION_CONSTANTS, *_VISION_IGNORED}),
        )
        for key in given
        if key not in names and given[key] is not None
    ]
    mode = data.get("process_image_mode", "anyres")
    if mode not in ("anyres", "resize"):
        problems.append(f"process_image_mode is {mode!r}, and Leyden knows anyres and resize")
    if problems:
        raise UserError(f"{source} cannot be read as the minimax_vl layout: {'; '.join(problems)}.")
    fields = {name: vision[name] for name in _SAME} | {
        "image_token_id": data["image_token_index"],
        "image_grid_pinpoints": data.get("image_grid_pinpoints", RELEASED_PINPOINTS) if mode == "anyres" else (),
    }
    decoder = MINIMAX.read_config({"model_type": MINIMAX.model_types[0], **text}, f"{source}, text_config")
    return ModelConfig.parse({**decoder.model_dump(), "vision": fields}, source)


def _write_config(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> dict[str, Any]:
    vision = config.vision
    if vision is None:
        raise UserError("the minimax_vl layout is of models with a vision side, and this one has none (use minimax).")
    text = MINIMAX.write_config(config.model_copy(update={"vision": None}), dtype, tokenizer)
    canvases = vision.image_grid_pinpoints
    return {
        "architectures": ["MiniMaxVL01ForConditionalGeneration"],
        "model_type": "minimax_vl_01",
        "text_config": text,
        "vision_config": {
            "model_type": "clip_vision_model",
            **{name: getattr(vision, name) for name in _SAME},
            "num_channels": 3,
            "projection_dim": config.hidden_size,
        },
        "image_token_index": vision.image_token_id,
        "image_seq_length": vision.grid**2,
        **_CONSTANTS,
        "process_image_mode": "anyres" if canvases else "resize",
        "image_grid_pinpoints": [list(canvas) for canvas in canvases],
        "tie_word_embeddings": config.tie_word_embeddings,
        **token_ids(tokenizer),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


MINIMAX_VL = Layout(
    name="minimax_vl",
    model_types=("minimax_vl_01",),
    rules=(
        *(
            WeightRule(rule.ours, tuple(_TEXT + name for name in rule.theirs), rule.rows, rule.kind)
            for rule in MINIMAX.rules
        ),
        *_VISION_RULES,
    ),
    read_config=_read_config,
    write_config=_write_config,
    narrows=True,
)
