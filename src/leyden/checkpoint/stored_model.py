"""What a model on disk is once its names and shapes have been checked, whatever files hold it."""

from dataclasses import dataclass

import torch

from leyden.checkpoint.layouts import Layout
from leyden.checkpoint.rules import Binding, bind
from leyden.checkpoint.stored_weights import StoredWeights
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.float32 import Float32Module
from leyden.tokenizer import Tokenizer


@dataclass(frozen=True)
class StoredModel:
    """A model on disk whose names and shapes have been checked.

    Attributes:
        layout: the name of the layout that it is in.
        config: its shape.
        weights: read when they are asked for.
        tokenizer: None where it has none.
    """

    layout: str
    config: ModelConfig
    weights: StoredWeights
    tokenizer: Tokenizer | None


def bindings_of(layout: Layout, config: ModelConfig) -> tuple[list[Binding], set[str]]:
    """How a layout stores each parameter of a model, and which parameters are float32 always."""
    with torch.device("meta"):
        model = HybridLM(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    float32 = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, Float32Module)
        for name, _ in module.named_parameters()
    }
    return bind(layout.rules, config, shapes), float32


def check_fit(config: ModelConfig, tokenizer: Tokenizer | None, source: str) -> None:
    """Refuse a tokenizer with more tokens than the model of ``source`` has.

    Raises:
        UserError: it has.
    """
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens and the model's vocab_size is "
            f"{config.vocab_size}; the tokenizer belongs to another model."
        )
