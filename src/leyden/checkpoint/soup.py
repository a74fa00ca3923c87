"""The average of the weights of several models: of runs that differ in their data or seed (arXiv 2203.05482), or of the
last checkpoints of one run, as Llama 3 ended its annealing (arXiv 2407.21783, section 3.4.3).

A tensor is read from one model after the other, summed in float64 and rounded once, so that what is in memory is a
tensor, or an expert of one, however many models there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint.hub import find_model
from leyden.checkpoint.made_model import write_made
from leyden.checkpoint.model_directory import open_stored
from leyden.checkpoint.model_place import refuse_to_overwrite
from leyden.checkpoint.starting_model import StartingModel
from leyden.checkpoint.stored_model import StoredModel
from leyden.checkpoint.stored_weights import widest
from leyden.checkpoint.tensor_files import SHARD_BYTES
from leyden.checkpoint.training import last_checkpoints
from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.parallel import Part
from leyden.tokenizer import Tokenizer

SOUP_FILE = "soup.json"
"""Beside the averaged weights: of which models, with which shares."""

_OF_TRAINING = {
    *("capacity_factor", "token_drop", "router_aux_loss_coef", "router_aux_loss"),
    *("router_group_loss_coef", "router_z_loss_coef", "z_loss_coef"),
}
"""Fields in which models may differ: they change what is learned, and not what is computed."""


@dataclass(frozen=True)
class Ingredient:
    """One of the models.

    Attributes:
        name: as the user gave it.
        directory: of its files.
        share: of the average, before shares are divided by their sum.
        stored: the model, whose weights are read when they are asked for.
    """

    name: str
    directory: Path
    share: float
    stored: StoredModel


def soup(
    models: Sequence[str | Path],
    target: str | Path,
    *,
    weights: Sequence[float] | None = None,
    layout: str | None = None,
    replace: bool = False,
    file_bytes: int = SHARD_BYTES,
) -> None:
    """Write the average of ``models``, with the tokenizer that they share.

    Args:
        models: directories in any layout, runs, checkpoints or hub ids; two or more, of one shape.
        target: a directory that does not exist, or is empty.
        weights: the share of each model, above 0, divided by their sum; None: all alike.
        layout: in which it is written; None: that of transformers where it can express the model, else Leyden's.
        replace: an older model in ``target`` is replaced; never one of ``models``.
        file_bytes: a file is no larger, unless one tensor is.

    Raises:
        UserError: fewer than two models, shares that do not fit, models that differ (with the first difference), a
            model that :func:`leyden.checkpoint.load` refuses, or a target that is not free. Nothing is written then.
    """
    target = Path(target)
    ingredients = _open(models, weights)
    for one in sorted(ingredients, key=lambda one: one.directory.resolve() != target.resolve()):
        refuse_to_overwrite(one.directory, target, replace)
    for one in ingredients[1:]:
        _refuse_difference(ingredients[0], one)
    config = ingredients[0].stored.config
    tokenizer = next((one.stored.tokenizer for one in ingredients if one.stored.tokenizer is not None), None)
    dtype = widest(one.stored.weights.dtype for one in ingredients)
    write_made(
        _Average(ingredients),
        config,
        dtype,
        tokenizer,
        target,
        title=f"averaging {len(ingredients)} models",
        notes={SOUP_FILE: {"models": [_noted(one) for one in ingredients]}},
        layout=layout,
        file_bytes=file_bytes,
    )


def last_of_run(run: str | Path, count: int) -> list[Path]:
    """The newest ``count`` checkpoints of a run, in the order of their steps.

    Raises:
        UserError: it has fewer; the message says how to keep more.
    """
    run = Path(run)
    found = last_checkpoints(run)
    if count < 2:
        raise UserError(f"an average is of 2 checkpoints or more; given --last {count}.")
    if len(found) < count:
        steps = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{run} has {len(found)} checkpoints ({steps}), fewer than --last {count}. A run keeps as many as "
            "train.keep_checkpoints says, one every train.checkpoint_steps; ask for fewer, or let it keep more."
        )
    return found[-count:]


def _open(models: Sequence[str | Path], weights: Sequence[float] | None) -> list[Ingredient]:
    if len(models) < 2:
        raise UserError(
            f"an average is of 2 models or more; given {len(models)}. Name several, or a run and --last N for its last "
            "N checkpoints."
        )
    shares = [1.0] * len(models) if weights is None else list(weights)
    if len(shares) != len(models):
        raise UserError(f"--weights has {len(shares)} numbers for {len(models)} models; give one for each.")
    wrong = [share for share in shares if not 0 < share < float("inf")]
    if wrong:
        raise UserError(f"--weights must be above 0, as shares of an average are; given {wrong[0]:g}.")
    found = [find_model(model).absolute() for model in models]
    twice = next((path for index, path in enumerate(found) if path in found[:index]), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name it once, and give it a larger share by --weights.")
    return [
        Ingredient(str(model), directory, share, open_stored(directory))
        for model, directory, share in zip(models, found, shares, strict=True)
    ]


def _refuse_difference(first: Ingredient, other: Ingredient) -> None:
    """Refuse two models whose weights do not mean the same."""

    def refusal(what: str, there: Any, here: Any) -> UserError:
        return UserError(
            f"{first.name} and {other.name} cannot be averaged: {what} is {there} in the one and {here} in the other. "
            "Average models of one shape and one tokenizer."
        )

    ours, theirs = (one.stored.config for one in (first, other))
    for field in ModelConfig.model_fields:
        there, here = getattr(ours, field), getattr(theirs, field)
        if field not in _OF_TRAINING and there != here:
            raise refusal(field, there, here)
    tokenizers: list[Tokenizer | None] = [one.stored.tokenizer for one in (first, other)]
    there, here = (None if tokenizer is None else tokenizer.fingerprint[:12] for tokenizer in tokenizers)
    if there and here and there != here:
        raise refusal("the tokenizer", there, here)


def _noted(one: Ingredient) -> dict[str, Any]:
    """What the result says of a model that it was made of."""
    start = StartingModel(one.name, one.directory)
    return {**start.record(), "share": one.share, "layout": one.stored.layout}


class _Average:
    """The averaged weights (:class:`leyden.checkpoint.made_model.MadeWeights`)."""

    def __init__(self, ingredients: Sequence[Ingredient]) -> None:
        self._weights = [(one.share, one.stored.weights.in_memory()) for one in ingredients]
        self._sum = sum(one.share for one in ingredients)

    def part(self, name: str, part: Part) -> torch.Tensor:
        """The mean, in float64."""
        total = torch.zeros(part.local_shape, dtype=torch.float64)
        for share, weights in self._weights:
            total.add_(weights.part(name, part), alpha=share)
        return total.div_(self._sum)
