"""Learning rates that transfer across widths: maximal update parametrisation (muP, arXiv 2203.03466).

Of the equivalent forms of that paper this is the one without factors in the forward pass (its table 3): what changes
with the width are the initial weights and the learning rates of each kind of weight, so that the trained model is an
ordinary one.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.matrices import hidden_matrices
from leyden.train.muon import MuonConfig
from leyden.train.optimizer import MasterAdamW

_Kind = Literal["input", "hidden", "output", "vector"]


class MupConfig(Config):
    """The width at which rates were found."""

    base_width: int = Field(ge=1, le=2**20)
    """``hidden_size`` of the model at which the learning rate was found; at it, nothing changes."""


def check_mup(config: ModelConfig, *, adapters: bool) -> None:
    """Refuse what has no rule here.

    Raises:
        UserError: tied embeddings, an induction circuit, or adapters.
    """
    reason = ""
    if config.tie_word_embeddings:
        reason = (
            "scales the embedding and the output projection differently, and model.tie_word_embeddings makes them one "
            "weight; untie them"
        )
    elif config.initialization == "induction":
        reason = (
            'scales initial weights by the width, and those of model.initialization = "induction" have sizes of their '
            'own; take "xavier" or "normal"'
        )
    elif adapters:
        reason = "is for the weights of a whole model, and train.lora trains adapters; leave one of the two out"
    if reason:
        raise UserError(f"train.mup {reason}.")


def mup_rates(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], mup: MupConfig, muon: MuonConfig | None
) -> dict[str, float]:
    """What the stage's learning rate is multiplied by for each weight, with m the width over the base width.

    AdamW moves every entry alike, so a matrix that sums over the width has 1 / m. Muon's update has a spectral norm of
    its scale: ``original`` keeps it at any width and has 1; ``match_rms_adamw`` lets it grow by sqrt(m), which is taken
    back (arXiv 2310.17813).

    Args:
        config: of the model.
        shapes: of its whole weights, by name.
        mup: the base width.
        muon: the constants of Muon, where it moves the matrices of the layers.
    """
    m = config.hidden_size / mup.base_width
    hidden = 1 / m if muon is None else 1.0 if muon.scale == "original" else m**-0.5
    factors: dict[_Kind, float] = {"input": 1.0, "hidden": hidden, "output": 1 / m, "vector": 1.0}
    return {name: factors[kind] for name, kind in _kinds(config, shapes).items()}


def scale_initial_weights(optimizer: MasterAdamW, config: ModelConfig, mup: MupConfig) -> None:
    """Give initial weights the sizes that they have at the base width, those that read the hidden state for an output
    1 / m of it, and matrices of layers variances in 1 / m."""
    shapes = {name: weight.part.shape for name, weight in optimizer.weights.items()}
    kinds = _kinds(config, shapes)
    for name, master in optimizer.masters().items():
        master.mul_(_initial_factor(kinds[name], shapes[name], name, config, mup))
    optimizer.round_into_model()


def _kinds(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Kind]:
    hidden = hidden_matrices(shapes, config)
    return {name: _kind(name, len(shape), name in hidden) for name, shape in shapes.items()}


def _kind(name: str, num_dims: int, hidden: bool) -> _Kind:
    if num_dims == 1:
        return "vector"
    if hidden:
        return "hidden"
    return "input" if name == "embed_tokens.weight" else "output"


def _initial_factor(kind: _Kind, shape: tuple[int, ...], name: str, config: ModelConfig, mup: MupConfig) -> float:
    """Over the weights that :func:`leyden.model.initialization.initial_weight` draws."""
    width, base = config.hidden_size, mup.base_width
    m = width / base
    if kind == "vector":
        return 1.0
    if kind == "hidden":  # Xavier's variance falls with the width by itself
        return m**-0.5 if config.initialization == "normal" else 1.0
    if name == "score.weight":
        at_base = math.sqrt((width + 1) / (base + 1))
    elif config.initialization == "normal":
        at_base = 1.0
    else:
        at_base = math.sqrt((shape[0] + width) / (shape[0] + base))
    return at_base if kind == "input" else at_base / m
