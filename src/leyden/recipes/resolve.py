"""What a recipe leaves open, settled once and written down, so that a resumed run is the same run."""

from pathlib import Path
from typing import Any, Literal

from leyden.core.config import read_toml
from leyden.core.errors import UserError
from leyden.core.launch import launched
from leyden.recipes.loader import parse_recipe
from leyden.recipes.prepare import has_begun
from leyden.recipes.schema import Recipe

RECIPE_FILE = "recipe.toml"

_FREE = (
    "parallel",
    "train.async_checkpoint",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
)
"""What a run may change on its way: it leaves every step as it was but for the order of additions."""


def earlier_recipe(directory: Path, resume: Literal["auto", "never"]) -> Recipe | None:
    """The resolved recipe of the run that ``directory`` holds, or None where it has made nothing yet.

    Raises:
        UserError: there is one, and ``resume`` is ``"never"``.
    """
    path = directory / RECIPE_FILE
    if not path.exists() or not has_begun(directory):
        return None
    if resume == "never":
        raise UserError(
            f"{directory} holds a run already and --resume never asks for a new one; give another --dir, remove "
            f"{directory}, or go on with that run by --resume auto."
        )
    return parse_recipe(read_toml(path), str(path))


def adopt(recipe: Recipe, earlier: Recipe | None, directory: Path) -> Recipe:
    """``recipe`` with what the earlier run settled (dtype, measured steps).

    They must agree in everything else but the plan and how often a checkpoint is written: a run may go on on other
    ranks, with the same batches at the same steps.

    Raises:
        UserError: they differ; the message names every key with both values.
    """
    if earlier is None:
        return recipe
    stages = tuple(
        stage.model_copy(update={"steps": before.steps}) if stage.minutes is not None and stage.steps is None else stage
        for stage, before in zip(recipe.stage, earlier.stage, strict=False)
    )
    update: dict[str, Any] = {"stage": stages + recipe.stage[len(stages) :]}
    if recipe.train.dtype == "auto":
        update["train"] = recipe.train.model_copy(update={"dtype": earlier.train.dtype})
    settled = recipe.model_copy(update=update)
    changes = _differences(settled.model_dump(mode="json"), earlier.model_dump(mode="json"), "")
    if changes:
        raise UserError(
            f"{directory} holds a run of another recipe: {'; '.join(changes)}. Go on with the recipe it has "
            f"({launched().command('run', directory / RECIPE_FILE, '--dir', directory)}), or give another --dir."
        )
    return settled


def _differences(now: Any, before: Any, path: str) -> list[str]:
    """``key is X there and Y now`` for every leaf that differs and may not."""
    if path in _FREE:
        return []
    if isinstance(now, dict) and isinstance(before, dict):
        keys = sorted(now.keys() | before.keys())
        return [d for key in keys for d in _differences(now.get(key), before.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        pairs = enumerate(zip(now, before, strict=True))
        return [d for i, (new, old) in pairs for d in _differences(new, old, f"{path}.{i}")]
    return [] if now == before else [f"{path} is {before!r} there and {now!r} now"]
