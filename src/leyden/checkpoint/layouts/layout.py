"""What a layout is: how a configuration and the weights of a model are written in files."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from leyden.checkpoint.rules import WeightRule
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer


@dataclass(frozen=True)
class Derived:
    """A tensor that a layout stores and the model's shape determines.

    Attributes:
        name: its name in the file.
        shape: its shape.
        make: gives its value.
        tolerance: how far a stored value of a dtype may lie from it, element by element.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]
    tolerance: Callable[[torch.dtype], torch.Tensor | float]


def token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The special ids of a config.json in the style of transformers; every end of a text ends a generation."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.end_ids)}


def _nothing_left_out(config: ModelConfig, names: Iterable[str], source: str) -> list[str]:
    return []


def _nothing_derived(config: ModelConfig, data: dict[str, Any]) -> list[Derived]:
    return []


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        name: as the command line spells it.
        model_types: the values of ``model_type`` in config.json; the first is the one written.
        rules: the weight map.
        read_config: config.json's content and its path to our configuration; a UserError where it cannot be ours.
        write_config: our configuration, the dtype of the matrices and the tokenizer to config.json's content; a
            UserError where the layout cannot express the model.
        derived: from our configuration and config.json's content, the tensors in the file that are no parameters.
        architectures: the values of ``architectures`` in config.json, where ``model_type`` is also that of models that
            are none of this layout; the first is the one written. Empty: ``model_type`` is enough.
        left_out: from our configuration, the names in the files and where they are, those of tensors that the model
            does without; a UserError where they are those of another model.
        narrows: float32 parameters are written in the dtype of the matrices where that rounds nothing.
    """

    name: str
    model_types: tuple[str, ...]
    rules: tuple[WeightRule, ...]
    read_config: Callable[[dict[str, Any], str], ModelConfig]
    write_config: Callable[[ModelConfig, torch.dtype, Tokenizer | None], dict[str, Any]]
    derived: Callable[[ModelConfig, dict[str, Any]], list[Derived]] = _nothing_derived
    architectures: tuple[str, ...] = ()
    left_out: Callable[[ModelConfig, Iterable[str], str], list[str]] = _nothing_left_out
    narrows: bool = False
