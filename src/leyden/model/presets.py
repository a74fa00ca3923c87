"""Named model shapes: ``text-01`` and ``vl-01`` as released, ``tiny`` for a laptop, and the paper's study sizes."""

from typing import Any

from leyden.core.errors import UserError, suggest
from leyden.model.config import ModelConfig


def _study(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    """A dense hybrid of the paper's scaling experiments (section 2.2.3: 70M to 7B parameters, 8,192 tokens).

    The paper prints no widths; these follow the Pythia suite's (arXiv 2304.01373, table 1), with a SwiGLU of 8/3 the
    width and one softmax layer in eight (the last layer is softmax where eight does not divide the depth).
    """
    softmax = {i for i in range(layers) if (i + 1) % 8 == 0} | {layers - 1}
    return {
        "vocab_size": 65_536,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "layer_types": tuple("full_attention" if i in softmax else "linear_attention" for i in range(layers)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "rotary_dim": hidden // heads // 2,
        "intermediate_size": intermediate,
        "num_local_experts": 0,
        "max_position_embeddings": 1_048_576,
        "tie_word_embeddings": True,
    }


_TEXT_01: dict[str, Any] = {
    "vocab_size": 200_064,
    "hidden_size": 6144,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "rope_theta": 10_000_000.0,
    "max_position_embeddings": 10_240_000,
    "intermediate_size": 9216,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
    "router_aux_loss": "switch",
}

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "70m": _study(512, 6, 8, 1408),
    "160m": _study(768, 12, 12, 2048),
    "410m": _study(1024, 24, 16, 2816),
    "1b": _study(2048, 16, 16, 5632),
    "3b": _study(2560, 32, 20, 6912),
    "7b": _study(4096, 32, 32, 11_008),
    "text-01": _TEXT_01,
    "vl-01": {**_TEXT_01, "max_position_embeddings": 8192, "vision": {}},
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The preset ``name``, with any field changed.

    Raises:
        UserError: an unknown name or field, or a shape that cannot be.
    """
    if name not in PRESETS:
        raise UserError(f"model preset '{name}' is unknown{suggest(name, PRESETS)}")
    shape = dict(PRESETS[name])
    if "num_hidden_layers" in changes and "layer_types" not in changes:
        shape.pop("layer_types", None)
    return ModelConfig.parse({**shape, **changes}, f"model preset '{name}'")
