"""The resolved recipe: values that a recipe leaves open, written down once, and which may change on a resume."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from leyden.align.rollouts.settings import RolloutSettings
from leyden.align.tasks import PREFIX
from leyden.core.config import read_toml
from leyden.core.errors import UserError
from leyden.core.launch import launched
from leyden.data.sources import is_of_standard_library
from leyden.recipes.loader import parse_recipe
from leyden.recipes.prepare import TOKENS_DIRECTORY, has_begun
from leyden.recipes.schema import Recipe
from leyden.recipes.sections import ROWS, DataSection
from leyden.train import Progress

RECIPE_FILE = "recipe.toml"

_FREE = (
    "parallel",
    "evaluate",
    "serve",
    "data.build",
    "train.async_checkpoint",
    "train.checkpoint_steps",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "train.noise_scale_steps",
    "train.sinks",
)
"""What may change at any time: it leaves every step as it was but for the order of additions. A build may lie
elsewhere; that its tokens are the same is seen by their fingerprints."""

_READ = (
    "data.text",
    "data.chats",
    "data.preferences",
    "data.solutions",
    "data.document_token",
    "data.held_out_fraction",
    "data.recall_share",
    "data.recall_learn",
    "data.recall_group",
    "tokenizer",
    "model.from",
)
"""What tokens follow from that a run has made of text, or taken from token files."""

_LENGTH = ("tokens", "steps", "minutes", "epochs")


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
    data = read_toml(path)
    if data.get("data", {}).get("build") is not None:
        data.pop("tokenizer", None)  # written by versions that took no notice of it
    return located(parse_recipe(data, str(path)))


def located(recipe: Recipe) -> Recipe:
    """``recipe`` with absolute paths, so that its run can be gone on with from any working directory."""
    path, start = recipe.tokenizer.path and recipe.tokenizer.path.absolute(), recipe.starts_from
    stages = tuple(
        stage.model_copy(
            update={
                "data": None if stage.data is None else _located(stage.data),
                "rl": None if stage.rl is None else _with_places(stage.rl),
            }
        )
        for stage in recipe.stage
    )
    return recipe.model_copy(
        update={
            "data": _located(recipe.data),
            "tokenizer": recipe.tokenizer.model_copy(update={"path": path}),
            "starts_from": str(Path(start).absolute()) if start is not None and Path(start).exists() else start,
            "stage": stages,
        }
    )


def _with_places(settings: RolloutSettings) -> RolloutSettings:
    """With absolute paths of prompts, and of an environment in a file."""
    place, colon, name = (settings.environment or "").rpartition(":")
    there = f"{Path(place).absolute()}{colon}{name}" if place.endswith(".py") else settings.environment
    places = {"prompts": _of_rows(settings.prompts), "held_out": _of_rows(settings.held_out)}
    return settings.model_copy(update={**places, "environment": there})


def _of_rows(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path if path.startswith(("hf://", PREFIX)) else str(Path(path).absolute()) for path in paths)


def _located(data: DataSection) -> DataSection:
    places: dict[str, Any] = {"text": _absolute(data.text), "tokens": _absolute(data.tokens)}
    places |= {key: _of_rows(getattr(data, key)) for key in ROWS}
    return data.model_copy(update=places | {"build": data.build and data.build.absolute()})


Paths = tuple[Path, ...] | dict[str, tuple[Path, ...]]


def _absolute(paths: Paths) -> Paths:
    if isinstance(paths, dict):
        return {name: _each_absolute(of_group) for name, of_group in paths.items()}
    return _each_absolute(paths)


def _each_absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path if is_of_standard_library(path) else path.absolute() for path in paths)


def settled(recipe: Recipe, earlier: Recipe, progress: Progress | None) -> Recipe:
    """``recipe`` with what an earlier run settled: dtype, and measured steps of the same minutes."""
    begun = -1 if progress is None else progress.stage
    stages = list(recipe.stage)
    for index, (stage, before) in enumerate(zip(recipe.stage, earlier.stage, strict=False)):
        measured = stage.model_copy(update={"steps": before.steps})
        lengths = (stage.minutes, stage.epochs)
        same = measured == before or (index <= begun and lengths == (before.minutes, before.epochs))
        if lengths != (None, None) and stage.steps is None and same:
            stages[index] = measured
    update: dict[str, Any] = {"stage": tuple(stages)}
    if recipe.train.dtype == "auto":
        update["train"] = recipe.train.model_copy(update={"dtype": earlier.train.dtype})
    return recipe.model_copy(update=update)


def same_documents(recipe: Recipe, other: Recipe) -> bool:
    """Whether the tokens that a run makes of its text are the same by both."""
    leaves = _differences(_dump(recipe), _dump(other))
    read = (*_READ, "data.build", "data.tokens")
    return recipe.data.build is None and not any(_is_of(path, read) for path, _, _ in leaves)


def adopt(recipe: Recipe, earlier: Recipe | None, directory: Path, progress: Progress | None) -> Recipe:
    """``recipe`` with what the earlier run settled, if that run may go on by it.

    What has been done must be what ``recipe`` says: the table in docs/recipes.md has every key.

    Args:
        recipe: what is asked for.
        earlier: of the run in ``directory``; None: there is none.
        directory: the run's.
        progress: of the run; None where it has no checkpoint, and will begin at step 1.

    Raises:
        UserError: it is not; the message names every key with both values, and says what to do.
    """
    if earlier is None:
        return recipe
    asked = settled(recipe, earlier, progress)
    leaves = _differences(_dump(asked), _dump(earlier))
    free: set[str] = {*_FREE}
    if asked.data.tokens and earlier.data.tokens:
        free.add("data.tokens")  # they may lie elsewhere; that the tokens are the same is seen by their fingerprints
    if any(stage.batch == "critical" for stage in earlier.stage):
        free.remove("train.noise_scale_steps")  # the batch depends on it
    if progress is None and not (directory / "final").exists():
        changes = [_told(leaf) for leaf in leaves if _is_of(leaf[0], _READ)]
        if changes:
            raise UserError(
                f"{directory} has read its documents by another recipe: {'; '.join(changes)}. To have them read again, "
                f"remove {directory / TOKENS_DIRECTORY}; or give another --dir."
            )
        return asked
    changes = [_told(leaf) for leaf in leaves if not _is_of(leaf[0], (*free, "stage"))]
    changes += _stage_changes(asked, earlier, progress)
    if changes:
        raise UserError(_refusal(directory, changes, earlier, progress))
    return asked


def is_trained(recipe: Recipe, directory: Path, progress: Progress | None) -> bool:
    """Whether ``final/`` is what ``recipe`` ends with, and not with what it said before it was lengthened."""
    if progress is None or not (directory / "final").exists():
        return (directory / "final").exists()
    last = len(recipe.stage) - 1
    return progress.stage > last or (progress.stage == last and recipe.stage[last].total_steps == progress.stage_step)


def _stage_changes(now: Recipe, before: Recipe, progress: Progress | None) -> list[str]:
    """What differs in the stages that have begun, and may not."""
    if progress is None:  # there is a model, but no checkpoint to go on from
        progress = Progress(0, len(before.stage), 0)
        if len(now.stage) > len(before.stage):
            return [f"stage.{len(before.stage)} is new, and the checkpoints that it would go on from are gone"]
    changes = []
    for index, was in enumerate(before.stage[: progress.stage + 1]):
        if index >= len(now.stage):
            changes.append(f"stage.{index} ('{was.name}') has begun and is left out now")
            continue
        stage, begun = now.stage[index], index == progress.stage
        movable = begun and (stage.mixture is None or not stage.mixture.has_shares_of_the_stage)
        free = {*_LENGTH} if movable or stage.total_steps == was.total_steps else set()
        leaves = _differences(stage.model_dump(mode="json"), was.model_dump(mode="json"), f"stage.{index}")
        free |= {"mixture.max_epochs"} if begun else set()  # a bound, which the batches do not depend on
        free |= {"data.build", "data.tokens"}  # they may lie elsewhere
        free |= {"rl.max_drift", "rl.call_seconds"}  # bounds
        free |= {"rl.kept_rollouts", "rl.held_out", "rl.held_out_prompts"}  # what is shown
        changes += [_told(leaf) for leaf in leaves if not _is_of(leaf[0], [f"stage.{index}.{key}" for key in free])]
        if begun and not movable and stage.total_steps != was.total_steps:
            changes.append(
                f"the mixture of stage.{index} has marks that are shares of its length, which is therefore kept"
            )
        if begun and stage.total_steps is not None and stage.total_steps < progress.stage_step:
            changes.append(f"stage.{index} has taken {progress.stage_step} steps, and is to have {stage.total_steps}")
    return changes


def _refusal(directory: Path, changes: list[str], earlier: Recipe, progress: Progress | None) -> str:
    launch = launched()
    go_on = launch.command("run", directory / RECIPE_FILE, "--dir", directory)
    if progress is None:
        rest = "It is finished, and its checkpoints are gone, so that nothing can be trained on: give another --dir."
    else:
        fork = launch.command("run", "RECIPE", "--from", f"{directory}@{progress.step}", "--dir", "NEW")
        rest = (
            f"It is at step {progress.step}, in stage '{earlier.stage[progress.stage].name}', which can be made "
            f"longer; later stages can be changed, added and left out. To change more from here on, fork it ({fork})."
        )
    said = "; ".join(changes)
    return f"{directory} holds a run of another recipe: {said}. {rest} To go on with the recipe it has: {go_on}"


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


Leaf = tuple[str, Any, Any]
"""A key that differs, its value now and before."""


def _differences(now: Any, before: Any, path: str = "") -> list[Leaf]:
    if isinstance(now, dict) and isinstance(before, dict):
        keys = sorted(now.keys() | before.keys())
        return [d for key in keys for d in _differences(now.get(key), before.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        pairs = enumerate(zip(now, before, strict=True))
        return [d for i, (new, old) in pairs for d in _differences(new, old, f"{path}.{i}")]
    return [] if now == before else [(path, now, before)]


def _is_of(path: str, sections: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``sections`` or lies below one."""
    return any(path == section or path.startswith(f"{section}.") for section in sections)


def _told(leaf: Leaf) -> str:
    path, now, before = leaf
    return f"{path} is {before!r} there and {now!r} now"
