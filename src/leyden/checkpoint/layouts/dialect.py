"""Translation of another project's config.json to ``ModelConfig``: names, constants, and defaults it leaves out.

Nothing is dropped silently: a key that Leyden does not know, or a value that it does not compute with, is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.attention_options import OPTIONS

SECTION = "leyden"
"""The key of config.json under which a foreign layout carries what only Leyden knows."""

_TRAINING_FIELDS = (
    "capacity_factor",
    "token_drop",
    "router_aux_loss",
    "router_group_loss_coef",
    "router_z_loss_coef",
    "z_loss_coef",
)


@dataclass(frozen=True)
class Dialect:
    """A config.json of another project.

    Attributes:
        layout: the name of the layout.
        names: our field to theirs, for every field that both have.
        defaults: their fields that may be absent, and what that means.
        constants: their fields that must have one value for Leyden to compute the same model.
        assumed: our fields that they lack, each with the value their code computes with and the layouts that can say
            another.
        ignored: their fields that change no logits, and keys that the layout reads by itself.
        dense_layers: whether some layers may have a dense feed-forward where others have experts.
    """

    layout: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    constants: Mapping[str, Any]
    assumed: Mapping[str, tuple[Any, str]]
    ignored: frozenset[str]
    dense_layers: bool = False

    def read(self, data: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Our fields, from their config.json.

        Raises:
            UserError: fields missing or unknown, or values that Leyden does not compute with; all at once.
        """
        data = {**self.defaults, **data}
        problems = [f"{key} is missing" for key in self.names.values() if key not in data]
        for key, value in self.constants.items():
            if data.get(key, value) != value:
                problems.append(f"{key} is {data[key]!r}, and Leyden computes with {value!r} alone")
        if data.get("num_local_experts") == 0:
            problems.append("num_local_experts is 0, and this layout has no dense MLP")
        known = {SECTION, "model_type", *self.names.values(), *self.constants, *self.ignored}
        for key, value in data.items():
            if key not in known and not key.startswith("_") and value is not None:
                problems.append(f"{key} is not known (remove it if it does not change what the model computes)")
        if problems:
            raise UserError(f"{source} cannot be read as the {self.layout} layout: {'; '.join(problems)}.")
        fields = {ours: data[theirs] for ours, theirs in self.names.items()}
        fields |= {ours: value for ours, (value, _) in self.assumed.items()}
        return {**fields, "router_aux_loss": "switch", **data.get(SECTION, {})}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Their fields, from our configuration, with the training settings that they lack in a section of their own.

        Raises:
            UserError: a model that their code cannot compute.
        """
        fields = config.model_dump(mode="json")
        problems = [
            f"{ours} = {fields[ours]} (it computes with {value}; use {layouts})"
            for ours, (value, layouts) in self.assumed.items()
            if fields[ours] != value
        ]
        if config.num_local_experts == 0 and "num_local_experts" in self.names:
            problems.append("a dense MLP, num_local_experts = 0 (use leyden)")
        if config.mlp_types and not self.dense_layers:
            problems.append("dense layers among those with experts, mlp_types (use leyden)")
        if config.vision is not None:
            problems.append("a vision side (use minimax_vl or leyden)")
        if config.num_nextn_predict_layers:
            problems.append("modules for multi-token prediction, num_nextn_predict_layers (use leyden)")
        if problems:
            raise UserError(f"the {self.layout} layout cannot express {'; '.join(problems)}.")
        theirs = {key: fields[ours] for ours, key in self.names.items()}
        return {**theirs, **self.constants, SECTION: {name: fields[name] for name in _TRAINING_FIELDS}}


SHARED_NAMES = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "intermediate_size",
        "num_local_experts",
        "num_experts_per_tok",
        "router_aux_loss_coef",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
}
"""The fields that both foreign layouts call as we do."""

OPTIONS_ASSUMED: dict[str, tuple[Any, str]] = {
    name: (value, "leyden") for name, value in ModelConfig().model_dump(mode="json", include=set(OPTIONS)).items()
}
"""The options of other models of the family, which MiniMax's code has not."""

CONSTANTS = {"hidden_act": "silu", "attention_dropout": 0.0, "router_jitter_noise": 0.0, "sliding_window": None}

LOGIT_FREE = frozenset(
    {
        "architectures",
        "auto_map",
        "block",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "output_router_logits",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Fields of any config.json that change no logits."""
