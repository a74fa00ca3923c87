"""The folder of a run: what is found there after a failed start, a kill, or an earlier end."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from leyden.core.config import read_toml
from leyden.core.errors import UserError
from leyden.core.files import atomic_file, discard, remove_leftovers
from leyden.core.log import say
from leyden.recipes.schema import Recipe
from leyden.train import Progress, read_metrics
from leyden.train.observing import EVALUATIONS

_OUTCOME = (EVALUATIONS, "samples.jsonl", "report")
"""What is made of the finished model ``final/``."""


def check_folder(directory: Path) -> None:
    """Refuse a file in the place of a run's folder.

    Raises:
        UserError: there is one.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file and cannot hold a run; give another --dir.")


@contextmanager
def nothing_left_behind(directory: Path, missing: Sequence[Path]) -> Iterator[None]:
    """Where the block raises a UserError before a run has made anything, its folder is as it was.

    Args:
        directory: the run's.
        missing: those of it and its parents that were not there before, innermost first.
    """
    try:
        yield
    except UserError:
        kept = ("data", "checkpoints", "metrics.jsonl")
        if missing and not any((directory / name).exists() for name in kept):
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # something else may lie in a parent by now
                for parent in missing[1:]:
                    parent.rmdir()
        raise


def sweep(directory: Path) -> None:
    """Finish or remove what a killed process was in the midst of writing; the caller holds the folder."""
    for folder in (directory, directory / "checkpoints", *directory.glob("stage_data/*")):
        remove_leftovers(folder, below=False)
    for part in directory.glob("plans/*/tmp*"):
        discard(part)


def set_outcome_aside(recipe: Recipe, directory: Path, progress: Progress | None, trained: bool) -> None:
    """Where a finished run is to go on, move its model and what was made of it to ``earlier/step_XXXXXXXX/``.

    With other settings of ``[evaluate]`` alone the model stays, and is evaluated again.
    """
    names = () if trained else ("final", *_OUTCOME)
    if trained and progress is not None and (directory / "report").exists():
        before = read_toml(directory / "recipe.toml").get("evaluate")
        now = recipe.evaluate.model_dump(mode="json", exclude_none=True)
        names = () if before == now else _OUTCOME
    found = [directory / name for name in names if (directory / name).exists()]
    if not found or progress is None:
        return
    place = directory / "earlier" / f"step_{progress.step:08d}"
    place.mkdir(parents=True, exist_ok=True)
    for path in found:
        discard(place / path.name)
        while_training = _while_training(path) if path.name == EVALUATIONS else ""
        os.replace(path, place / path.name)
        if while_training:
            with atomic_file(path) as part:
                part.write_text(while_training, encoding="utf-8")
    say(f"what the run had come to at step {progress.step} is in {place}")


def _while_training(path: Path) -> str:
    """The lines of an ``eval.jsonl`` that are of the model while it was trained."""
    return "".join(json.dumps(line) + "\n" for line in read_metrics(path) if "stage" in line)
