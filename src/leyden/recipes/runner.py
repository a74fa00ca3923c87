"""Runs a recipe: documents, tokenizer, stages, evaluation and report; a step that is done already is skipped.

Started by torchrun, every rank runs this. The first prepares, writes and evaluates, the others wait for it, and all
train (:mod:`leyden.parallel`).
"""

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from leyden.checkpoint.starting_model import StartingModel
from leyden.core.device import keep_freed_memory
from leyden.core.errors import Interrupted, UserError
from leyden.core.files import atomic_file, disk_errors_are_user_errors
from leyden.core.launch import Launch, launched
from leyden.core.lock import folder_lock
from leyden.core.log import say
from leyden.evaluate import write_report
from leyden.parallel import ParallelConfig, Plan, RankGroup, Watchdog, make_plan, team_of
from leyden.parallel.planner import StepShape, check_plan
from leyden.recipes.answers import write_answers
from leyden.recipes.batches import check_batches, tell_doubts
from leyden.recipes.folder import check_folder, nothing_left_behind, set_outcome_aside, sweep
from leyden.recipes.fork import Fork, Origin, check_origin
from leyden.recipes.loader import dry
from leyden.recipes.machine import note_machine
from leyden.recipes.objectives import ON_PROMPTS
from leyden.recipes.outcome import evaluate_run, tell_outcome, write_samples
from leyden.recipes.overview import overview
from leyden.recipes.prepare import has_begun, read_prepared
from leyden.recipes.resolve import RECIPE_FILE, adopt, earlier_recipe, is_trained, located
from leyden.recipes.schema import Recipe
from leyden.recipes.stage_data import look_at, not_there, prepare_all, read_all
from leyden.recipes.stages import settle_steps, train
from leyden.recipes.starting import awaited_model, read_start, settle_start, tell_start
from leyden.train import Progress, save_trained
from leyden.train.sinks import require_sinks

Resume = Literal["auto", "never"]


def run(recipe: Recipe, directory: Path, *, resume: Resume = "auto", origin: str | None = None) -> Path:
    """Carry out ``recipe`` in ``directory``, or go on where an earlier run of it stopped.

    Args:
        recipe: what to do.
        directory: the run's; it holds all that is made (docs/recipes.md lists it), and all ranks see it.
        resume: ``"auto"`` goes on with what is there; ``"never"`` refuses a directory that holds a run.
        origin: ``DIR`` or ``DIR@STEP``: begin where that run was (:mod:`leyden.recipes.fork`).

    Returns:
        The finished model, ``directory/final``.

    Raises:
        UserError: ``directory`` holds a run of another recipe, another process runs there, this recipe cannot be
            carried out, or the disk fails.
        Interrupted: Ctrl-C or SIGTERM during training; everything is saved.
    """
    keep_freed_memory()
    require_sinks(recipe.train.sinks)
    launch, start = launched(), Origin.parse(origin) if origin is not None else None
    plan = _plan(recipe, launch, directory)
    command = launch.command("run", directory / RECIPE_FILE, "--dir", directory, "--resume", "auto")
    go_on = f"To go on: {command}"
    try:
        # Of several ranks the first holds the folder for all.
        with ExitStack() as held:
            with team_of(plan) as rank_group, disk_errors_are_user_errors(directory):
                begun = rank_group.first(lambda: _begin(recipe, directory, resume, start, held))
                recipe = Recipe.parse(begun["recipe"], "the run's recipe")
                if not begun["trained"]:
                    _train(recipe, directory, go_on, rank_group)
            if launch.rank == 0:
                with disk_errors_are_user_errors(directory):
                    _show(recipe, directory)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped; what was finished is kept. {go_on}") from None
    return directory / "final"


def check(recipe: Recipe, directory: Path, *, resume: Resume = "auto", origin: str | None = None) -> str:
    """What :func:`run` would carry out, as TOML below a table of its stages; everything is checked that can be without
    making anything.

    Raises:
        UserError: as :func:`run` does.
    """
    require_sinks(recipe.train.sinks)
    world = max(launched().world, _fewest_ranks(recipe.parallel))
    _check_plan(recipe, world)
    check_folder(directory)
    recipe, progress = located(recipe), Progress.of(directory)
    forked = Origin.parse(origin) if origin is not None else None
    forked = check_origin(directory, forked, begun=progress is not None)
    awaited = "" if forked is not None or progress is not None else awaited_model(recipe, directory)
    if awaited:
        tell_doubts(recipe)
        return overview(recipe, world) + awaited + dry(recipe)
    recipe = adopt(recipe, earlier_recipe(directory, resume), directory, progress)
    first = 0 if progress is None else progress.stage
    if forked is not None and progress is None:
        fork = Fork(forked, recipe)
        recipe, first = fork.recipe, fork.stage
    elif recipe.starts_from is not None and progress is None:
        tell_start(recipe, read_start(directory) or StartingModel.find(recipe.starts_from))
    prepared = look_at(recipe, directory, first)
    if prepared is not None:
        check_batches(recipe, prepared, first=first)
    tell_doubts(recipe)
    return overview(recipe, world) + not_there(recipe) + dry(recipe)


def _plan(recipe: Recipe, launch: Launch, directory: Path) -> Plan:
    """How the ranks that were started divide the work.

    Raises:
        UserError: they cannot, or more are needed.
    """
    needed = _fewest_ranks(recipe.parallel)
    if launch.world == 1 and needed > 1:
        command = Launch(world=needed, local_world=needed).command("run", "RECIPE", "--dir", directory)
        raise UserError(
            f"[parallel] divides this run among at least {needed} ranks, and one process was started. Leave [parallel] "
            f"out, or start them: {command}"
        )
    _check_plan(recipe, launch.world)
    return make_plan(recipe.parallel, launch.world)


def _check_plan(recipe: Recipe, world: int) -> None:
    if recipe.train.lora is not None and world > 1:
        drawn = [stage.name for stage in recipe.stage if stage.objective in ON_PROMPTS]
        if drawn:
            raise UserError(
                f"stage '{drawn[0]}' draws completions, and with train.lora one process does that alone; this run has "
                f"{world}. Take that stage into a recipe of its own, or leave [train.lora] out."
            )
    for stage in recipe.stage:
        if stage.objective in ON_PROMPTS and recipe.parallel.pp > 1:
            raise UserError(
                f"stage '{stage.name}': completions are learned from without a pipeline (parallel.pp = "
                f"{recipe.parallel.pp}); set pp to 1, and divide by dp_shard, cp, tp or ep."
            )
        for change in stage.batch_schedule.changes:
            step = StepShape(stage.seq_len, stage.micro_batch, change.batch_tokens // stage.micro_batch)
            try:
                check_plan(recipe.parallel, world, recipe.model, step)
            except UserError as error:
                raise UserError(f"stage '{stage.name}': {error}") from None


def _fewest_ranks(config: ParallelConfig) -> int:
    """The smallest world that the sizes of ``config`` can make up."""
    ranks, experts = config.cp * config.tp, config.ep * config.etp
    shard = config.dp_shard or math.lcm(ranks, experts) // ranks
    return config.pp * config.dp_replicate * shard * ranks


def _begin(recipe: Recipe, directory: Path, resume: Resume, start: Origin | None, held: ExitStack) -> dict[str, Any]:
    """Take the folder, and prepare what training needs; of several ranks, the first does.

    Returns:
        The recipe as the run has it, as JSON values, and whether the model is trained already.
    """
    check_folder(directory)
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    held.enter_context(folder_lock(directory, "trains a run"))
    held.enter_context(nothing_left_behind(directory, missing))
    with disk_errors_are_user_errors(directory):
        return _begin_in(recipe, directory, resume, start)


def _begin_in(recipe: Recipe, directory: Path, resume: Resume, start: Origin | None) -> dict[str, Any]:
    """The same, in a folder that is this process's."""
    sweep(directory)
    progress = Progress.of(directory)
    start = check_origin(directory, start, begun=has_begun(directory))
    earlier = earlier_recipe(directory, resume)
    recipe = adopt(located(recipe), earlier, directory, progress)
    fork = Fork(start, recipe) if start is not None and progress is None else None
    trained = is_trained(recipe, directory, progress)
    set_outcome_aside(recipe, directory, progress, trained)
    if not (directory / "report" / "index.html").exists():
        recipe = _prepare(recipe if fork is None else fork.recipe, directory, progress, fork)
    elif earlier is not None and recipe.serve != earlier.serve:
        _write(directory / RECIPE_FILE, dry(recipe))
    return {"recipe": recipe.model_dump(mode="json"), "trained": trained}


def _prepare(recipe: Recipe, directory: Path, progress: Progress | None, fork: Fork | None) -> Recipe:
    """Make the tokens, and check every stage that is to come on them."""
    _write(directory / RECIPE_FILE, dry(recipe))  # before anything is made by it
    begins = fork is None and progress is None and not (directory / "final").exists()
    start = settle_start(recipe, directory) if begins else None
    if start is not None:
        tell_start(recipe, start)
    if fork is not None:
        fork.take_data(directory)
    first = fork.stage if fork is not None else progress.stage if progress is not None else 0
    prepare_all(recipe, directory, first)
    recipe = recipe.model_copy(update={"train": recipe.train.settled(None if start is None else start.dtype)})
    prepared = read_all(recipe, directory, first)
    check_batches(recipe, prepared, directory / "plans", first)
    if fork is not None:
        fork.take_state(recipe, prepared, directory)
    return recipe


def _train(recipe: Recipe, directory: Path, go_on: str, rank_group: RankGroup) -> None:
    """Train, on all ranks, and write the finished model."""
    progress = Progress.of(directory)
    first = 0 if progress is None else progress.stage
    prepared = read_all(recipe, directory, first)
    with Watchdog(rank_group), disk_errors_are_user_errors(directory):
        measured = settle_steps(recipe, prepared, rank_group, progress)
        if measured != recipe:  # what could not be checked while lengths were open
            rank_group.first(lambda: check_batches(measured, prepared, directory / "plans", first))
        if rank_group.rank == 0:
            tell_doubts(measured)
            _write(directory / RECIPE_FILE, dry(measured))
            note_machine(directory, measured.train.dtype, rank_group)
        start = read_start(directory) if recipe.starts_from is not None else None
        start = start and replace(start, new_rows=recipe.new_rows)
        state = train(measured, prepared, directory, go_on, rank_group, start)
    save_trained(state, prepared.tokenizer, directory / "final", measured.train.lora)


def _show(recipe: Recipe, directory: Path) -> None:
    """Evaluate the finished model and write the report, or say that all is done."""
    if (directory / "report" / "index.html").exists():
        say(f"{directory} is finished.")
    else:
        evaluate_run(recipe, read_prepared(recipe, directory), directory)
        write_samples(recipe, directory)
        write_answers(recipe, directory)
        write_report(directory)
    tell_outcome(directory)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
