"""What carries a recipe out: documents, tokenizer, stages, evaluation, report; a step found done is left alone."""

import json
from pathlib import Path
from typing import Literal

from leyden.checkpoint import save
from leyden.core.device import keep_freed_memory
from leyden.core.errors import Interrupted, UserError
from leyden.core.files import atomic_file
from leyden.core.log import say
from leyden.evaluate import machine, write_report
from leyden.recipes.loader import dry
from leyden.recipes.outcome import evaluate_run, tell_outcome, write_samples
from leyden.recipes.prepare import prepare
from leyden.recipes.resolve import RECIPE_FILE, adopt, earlier_recipe
from leyden.recipes.schema import Recipe
from leyden.recipes.stages import settle, train


def run(recipe: Recipe, directory: Path, *, resume: Literal["auto", "never"] = "auto") -> Path:
    """Carry out ``recipe`` in ``directory``, or go on where an earlier run of it stopped.

    Args:
        recipe: what to do.
        directory: the run's; it holds all that is made (docs/recipes.md lists it).
        resume: ``"auto"`` goes on with what is there; ``"never"`` refuses a directory that holds a run.

    Returns:
        The finished model, ``directory/final``.

    Raises:
        UserError: ``directory`` holds a run of another recipe, or this one cannot be carried out.
        Interrupted: Ctrl-C or SIGTERM during training; everything is saved.
    """
    keep_freed_memory()
    recipe = adopt(recipe, earlier_recipe(directory, resume), directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot hold a run: {error.strerror}; give another --dir.") from None
    if (directory / "report" / "index.html").exists():
        say(f"{directory} is finished.")
    else:
        go_on = f"To go on: leyden run {directory / RECIPE_FILE} --dir {directory} --resume auto"
        try:
            _carry_out(recipe, directory, go_on)
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped; what was finished is kept. {go_on}") from None
    tell_outcome(directory)
    return directory / "final"


def _carry_out(recipe: Recipe, directory: Path, go_on: str) -> None:
    final = directory / "final"
    _write(directory / RECIPE_FILE, dry(recipe))  # before anything is made by it
    prepared = prepare(recipe, directory)
    recipe = settle(recipe, prepared)
    _write(directory / RECIPE_FILE, dry(recipe))
    if not final.exists():
        _write(directory / "environment.json", json.dumps(machine(), indent=1))
        save(train(recipe, prepared, directory, go_on), prepared.tokenizer, final, layout="transformers")
    evaluate_run(recipe, prepared, directory)
    write_samples(recipe, directory)
    write_report(directory)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
