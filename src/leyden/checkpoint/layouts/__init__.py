"""The layouts of a model on disk."""

from typing import Any

import torch

from leyden.checkpoint.layouts.gguf import GGUF
from leyden.checkpoint.layouts.hypenet import HYPENET
from leyden.checkpoint.layouts.layout import Derived, Layout
from leyden.checkpoint.layouts.leyden import LEYDEN
from leyden.checkpoint.layouts.ling import LING
from leyden.checkpoint.layouts.minicpm_sala import MINICPM_SALA
from leyden.checkpoint.layouts.minimax import MINIMAX
from leyden.checkpoint.layouts.minimax_vl import MINIMAX_VL
from leyden.checkpoint.layouts.transformers import TRANSFORMERS
from leyden.core.errors import UserError, suggest
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer

__all__ = ["GGUF", "LAYOUTS", "Derived", "Layout", "layout_named", "layout_of", "layout_to_share"]

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (LEYDEN, TRANSFORMERS, MINIMAX, MINIMAX_VL, LING, MINICPM_SALA, HYPENET)
}


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        UserError: there is none.
    """
    if name not in LAYOUTS:
        raise UserError(f"layout '{name}' is unknown{suggest(name, LAYOUTS)}")
    return LAYOUTS[name]


def layout_of(config: dict[str, Any], source: str) -> Layout:
    """The layout that a config.json is written in, by its ``model_type``, and ``architectures`` if that is shared.

    Raises:
        UserError: a model of another kind.
    """
    kind = config.get("model_type")
    for layout in LAYOUTS.values():
        if kind in layout.model_types:
            _check_architecture(layout, config, source)
            return layout
    known = ", ".join(f"{layout.model_types[0]} ({layout.name})" for layout in LAYOUTS.values())
    raise UserError(f"{source}: model_type {kind!r} is none that Leyden reads; those are {known}.")


def _check_architecture(layout: Layout, config: dict[str, Any], source: str) -> None:
    said = config.get("architectures")
    named = said if isinstance(said, list) else []
    if layout.architectures and not set(layout.architectures) & {name for name in named if isinstance(name, str)}:
        raise UserError(
            f"{source}: model_type {config['model_type']!r} with architectures {said!r}. Several kinds of models have "
            f"this model_type, and Leyden reads those with {' or '.join(layout.architectures)} in architectures alone; "
            "another one has other layers, which would compute something else with what weights fit by name."
        )


def layout_to_share(config: ModelConfig, dtype: torch.dtype, tokenizer: Tokenizer | None) -> tuple[str, str]:
    """The layout in which most software opens a model: that of transformers where it can express the model, else ours.

    Args:
        config: of the model.
        dtype: of its matrices.
        tokenizer: that comes with it.

    Returns:
        The layout's name, and why it is not that of transformers, or an empty text.
    """
    try:
        TRANSFORMERS.write_config(config, dtype, tokenizer)
    except UserError as reason:
        return LEYDEN.name, str(reason)
    return TRANSFORMERS.name, ""
