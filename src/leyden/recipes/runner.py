"""What carries a recipe out: documents, tokenizer, stages, evaluation, report; a step found done is left alone.

Started by torchrun, every rank runs this. The first prepares, writes and evaluates, the others wait for it, and all
train (:mod:`leyden.parallel`).
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

from leyden.core.device import keep_freed_memory
from leyden.core.errors import Interrupted, UserError
from leyden.core.files import atomic_file
from leyden.core.launch import Launch, launched
from leyden.core.log import say
from leyden.evaluate import machine, write_report
from leyden.parallel import ParallelConfig, Plan, Team, Watchdog, make_plan, team_of
from leyden.parallel.planner import StepShape, check_plan
from leyden.recipes.loader import dry
from leyden.recipes.outcome import evaluate_run, tell_outcome, write_samples
from leyden.recipes.prepare import prepare, read_prepared
from leyden.recipes.resolve import RECIPE_FILE, adopt, earlier_recipe
from leyden.recipes.schema import Recipe
from leyden.recipes.stages import save_trained, settle_dtype, settle_steps, train


def run(recipe: Recipe, directory: Path, *, resume: Literal["auto", "never"] = "auto") -> Path:
    """Carry out ``recipe`` in ``directory``, or go on where an earlier run of it stopped.

    Args:
        recipe: what to do.
        directory: the run's; it holds all that is made (docs/recipes.md lists it), and all ranks see it.
        resume: ``"auto"`` goes on with what is there; ``"never"`` refuses a directory that holds a run.

    Returns:
        The finished model, ``directory/final``.

    Raises:
        UserError: ``directory`` holds a run of another recipe, or this one cannot be carried out.
        Interrupted: Ctrl-C or SIGTERM during training; everything is saved.
    """
    keep_freed_memory()
    launch = launched()
    plan = _plan(recipe, launch, directory)
    go_on = f"To go on: {launch.command('run', directory / RECIPE_FILE, '--dir', directory, '--resume', 'auto')}"
    try:
        with team_of(plan) as team:
            begun = team.first(lambda: _begin(recipe, directory, resume))
            recipe = Recipe.parse(begun["recipe"], "the run's recipe")
            if not begun["trained"]:
                _train(recipe, directory, go_on, team)
        if launch.rank == 0:
            _show(recipe, directory)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped; what was finished is kept. {go_on}") from None
    return directory / "final"


def _plan(recipe: Recipe, launch: Launch, directory: Path) -> Plan:
    """How the ranks that were started divide the work.

    Raises:
        UserError: they cannot, or more are needed.
    """
    needed = _fewest_ranks(recipe.parallel)
    if launch.world == 1 and needed > 1:
        command = Launch(world=needed, local_world=needed).command("run", "RECIPE", "--dir", directory)
        raise UserError(
            f"[parallel] divides this run among at least {needed} ranks, and one process was started. Start them by "
            f"{command}, or leave [parallel] out."
        )
    for stage in recipe.stage:
        step = StepShape(stage.seq_len, stage.micro_batch, stage.batch_tokens // stage.micro_batch)
        check_plan(recipe.parallel, launch.world, recipe.model, step)
    return make_plan(recipe.parallel, launch.world)


def _fewest_ranks(config: ParallelConfig) -> int:
    """The smallest world that the sizes of ``config`` can make up."""
    ranks, experts = config.cp * config.tp, config.ep * config.etp
    shard = config.dp_shard or math.lcm(ranks, experts) // ranks
    return config.pp * config.dp_replicate * shard * ranks


def _begin(recipe: Recipe, directory: Path, resume: Literal["auto", "never"]) -> dict[str, Any]:
    """Prepare what training needs; of several ranks, the first does.

    Returns:
        The recipe as the run has it, as JSON values, and whether the model is trained already.
    """
    recipe = adopt(recipe, earlier_recipe(directory, resume), directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot hold a run: {error.strerror}; give another --dir.") from None
    trained = (directory / "final").exists()
    if not (directory / "report" / "index.html").exists():
        _write(directory / RECIPE_FILE, dry(recipe))  # before anything is made by it
        prepare(recipe, directory)
        recipe = settle_dtype(recipe)
    return {"recipe": recipe.model_dump(mode="json"), "trained": trained}


def _train(recipe: Recipe, directory: Path, go_on: str, team: Team) -> None:
    """Train, on all ranks, and write the finished model."""
    prepared = read_prepared(recipe, directory)
    with Watchdog(team):
        recipe = settle_steps(recipe, prepared, team)
        if team.rank == 0:
            _write(directory / RECIPE_FILE, dry(recipe))
            _write(directory / "environment.json", json.dumps(machine(), indent=1))
        state = train(recipe, prepared, directory, go_on, team)
    save_trained(state, prepared.tokenizer, directory / "final")


def _show(recipe: Recipe, directory: Path) -> None:
    """Evaluate the finished model and write the report, or say that all is done."""
    if (directory / "report" / "index.html").exists():
        say(f"{directory} is finished.")
    else:
        evaluate_run(recipe, read_prepared(recipe, directory), directory)
        write_samples(recipe, directory)
        write_report(directory)
    tell_outcome(directory)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
