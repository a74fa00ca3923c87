"""``leyden info``: what a shape costs, said in words."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from leyden.checkpoint import read_config
from leyden.checkpoint.model_place import is_gguf
from leyden.core.config import override
from leyden.core.errors import UserError, suggest
from leyden.core.quantities import bytes_text, count_text
from leyden.model import PRESETS, ModelConfig, ModelCount, count_model, prefill_flops, preset
from leyden.model.experts import feed_forward_of
from leyden.model.mixers import mixer_of
from leyden.recipes.loader import load_recipe, shipped_recipes


def describe(what: str, settings: Sequence[str], length: int) -> str:
    """Parameters, FLOPs and bytes of a recipe's model, a model's directory, or a preset.

    Args:
        what: the path of a recipe, a model's directory, the name of a preset or of a shipped recipe.
        settings: ``model.field=value`` changes, for a recipe or a preset.
        length: tokens of context at which FLOPs and memory are stated.

    Raises:
        UserError: ``what`` is none of these, or a setting does not apply.
    """
    config = read_shape(what, settings)
    count = count_model(config)
    bf16 = torch.bfloat16
    kinds = [f"{layers} {mixer_of(kind).title}" for kind, layers in Counter(config.layer_types).items()]
    layers = f"{config.num_hidden_layers} ({', '.join(kinds)})"
    if config.mlp_types:
        mlps = [f"{number} {feed_forward_of(kind).title}" for kind, number in Counter(config.mlp_types).items()]
        layers += f"; feed-forwards: {', '.join(mlps)}"
    if config.norm_placement == "after":
        layers += "; norms behind attention and feed-forward"
    if config.parallel_block:
        layers += "; attention and feed-forward side by side"
    if not count.key_values_per_token:
        layers += "; layer_types adds softmax layers, which fewer than 8 layers have not by themselves"
    rows = [
        ("layers", layers),
        ("positions", f"{config.max_position_embeddings:,}; RoPE on {config.rotary_dim} dims, {config.rope}"),
        *_router(config),
        ("parameters", count_text(count.parameters)),
        ("active parameters", _active(config, count)),
        ("weights", f"{bytes_text(count.weight_bytes(bf16))} in bfloat16"),
        *_ahead(config, count),
        *_vision(config, count),
        *_states(config),
        *_windows(config, count),
        ("keys and values", f"{count.key_value_bytes_per_token(bf16):,} bytes in bfloat16 a token"),
        (
            f"context of {length:,}",
            f"{bytes_text(count.fixed_bytes(bf16) + length * count.key_value_bytes_per_token(bf16))} a sequence",
        ),
        (
            f"FLOPs at {length:,}",
            f"{count.forward_flops_per_token(length):.4g} a token forward, "
            f"{count.training_flops_per_token(length):.4g} in training",
        ),
        (f"prompt of {length:,}", f"{prefill_flops(config, length):.4g} FLOPs to the logits of the next token"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _states(config: ModelConfig) -> list[tuple[str, str]]:
    """One row a kind of layer that keeps a state."""
    mixers = [(mixer_of(kind), layers) for kind, layers in Counter(config.layer_types).items()]
    held = [(mixer.title, layers * mixer.count(config).state_bytes) for mixer, layers in mixers]
    return [
        (f"{title} state", f"{bytes_text(state)} in float32 a sequence, at any length")
        for title, state in held
        if state
    ]


def _router(config: ModelConfig) -> list[tuple[str, str]]:
    """Of a kind that the release does not have."""
    if config.router != "sigmoid_groups":
        return []
    said = f"{config.num_experts_per_tok} of {config.num_local_experts} experts by sigmoid scores and a bias"
    if config.topk_group < config.n_group:
        said += f", in {config.topk_group} of {config.n_group} groups"
    weights = "their shares" if config.norm_topk_prob else "their scores"
    return [("router", f"{said}; weights are {weights} times {config.routed_scaling_factor:g}")]


def _ahead(config: ModelConfig, count: ModelCount) -> list[tuple[str, str]]:
    """A row of the modules for multi-token prediction, if there are any."""
    if count.nextn is None:
        return []
    number, (mixer, mlp) = config.num_nextn_predict_layers, config.nextn_kind()
    kind = f"{mixer_of(mixer).title}, {feed_forward_of(mlp).title}"
    modules = f"{number} module{'s' if number > 1 else ''} ({kind})"
    return [("tokens ahead", f"{modules} of {count_text(count.nextn.parameters)} together, among the parameters")]


def _vision(config: ModelConfig, count: ModelCount) -> list[tuple[str, str]]:
    """Rows of the vision side, if there is one."""
    vision, counted = config.vision, count.vision
    if vision is None or counted is None:
        return []
    tokens, side = vision.grid**2, vision.image_size
    tower = (
        f"{vision.num_hidden_layers} layers of {vision.hidden_size} on tiles of {side} x {side} pixels: "
        f"{count_text(counted.tower_parameters)}, and {count_text(counted.projector_parameters)} of the projector, "
        "among the parameters"
    )
    canvases = [(height // side, width // side) for height, width in vision.image_grid_pinpoints]
    pictures = f"1 tile, {tokens + 1:,} tokens"
    if canvases:  # of n tiles, beside them the whole picture in one, and a token at the end of each row of patches
        few, many = (
            tokens + choose(rows * vision.grid * (columns * vision.grid + 1) for rows, columns in canvases)
            for choose in (min, max)
        )
        most = max(rows * columns for rows, columns in canvases)
        pictures = f"2 to {most + 1} tiles, {few:,} to {many:,} tokens where it fills its canvas"
    return [
        ("vision tower", tower),
        ("a picture", pictures),
        ("FLOPs a tile", f"{counted.flops_per_tile:.4g} in the tower, {counted.flops_per_token:.4g} a token behind it"),
    ]


def _windows(config: ModelConfig, count: ModelCount) -> list[tuple[str, str]]:
    if not count.window_values:
        return []
    held = bytes_text(count.window_values * torch.bfloat16.itemsize)
    return [("windows", f"{held} in bfloat16 a sequence, at {config.sliding_window:,} tokens and at any length beyond")]


def _active(config: ModelConfig, count: ModelCount) -> str:
    parts = "attention and feed-forward"
    if config.num_local_experts:
        parts = f"attention, router and the {config.num_experts_per_tok} experts of a token"
    return f"{count_text(count.active_parameters)}: {parts}, without embedding and output projection"


def read_shape(what: str, settings: Sequence[str]) -> ModelConfig:
    """The shape of a recipe's model, a model's directory, or a preset.

    Raises:
        UserError: ``what`` is none of these, or a setting does not apply.
    """
    if what in PRESETS:
        changes = override({"model": {}}, settings)
        if set(changes) != {"model"}:
            raise UserError(f"--set on a preset changes model.FIELD; given: {', '.join(settings)}.")
        return preset(what, **changes["model"])
    if Path(what).is_dir() or is_gguf(Path(what)):
        if settings:
            raise UserError(f"{what} is a model that exists; its shape cannot be changed by --set.")
        return read_config(what)
    if Path(what).exists() or what in shipped_recipes():
        return load_recipe(what, settings).model
    raise UserError(
        f"'{what}' is neither a recipe, a model's directory nor a preset{suggest(what, [*PRESETS, *shipped_recipes()])}"
    )
