"""``leyden study NAME GRID.toml``: a grid's points become recipes, these become runs, and the runs a report."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError, suggest
from leyden.core.quantities import count_text
from leyden.model import count_model
from leyden.recipes.loader import dry, load_recipe
from leyden.recipes.resolve import located
from leyden.recipes.schema import Recipe
from leyden.study.executors import EXECUTORS
from leyden.study.grid import Choice, Grid, Point, expand, read_grid
from leyden.study.grid_report import write_study
from leyden.study.kinds import KINDS
from leyden.study.launcher import carry_out

_FLOPS = "flops"
"""The key of an axis that is no recipe's: a budget, from which the steps follow."""
_LEAST_STEPS = 10
_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Asked:
    """How a study is to be carried out.

    Attributes:
        executor: a name of :data:`leyden.study.executors.EXECUTORS`.
        retry: run again what failed or diverged.
        dry_run: check everything and say what would be run.
    """

    executor: str = "local"
    retry: bool = False
    dry_run: bool = False


def run_study(kind: str, grid_file: Path, directory: Path, asked: Asked) -> str:
    """Carry out a study, or go on with it, and write its report.

    Args:
        kind: a name of :data:`leyden.study.kinds.KINDS`.
        grid_file: of the grid.
        directory: the study's; ``report.html``, ``tables.md`` and ``results.json`` are written to it.
        asked: how.

    Returns:
        The tables, as Markdown; with ``dry_run`` a list of the points.

    Raises:
        UserError: the grid is none, a key is unknown, it costs more than it may, or there is too little to fit.
        Interrupted: Ctrl-C; the same command goes on.
    """
    if asked.executor not in EXECUTORS:
        raise UserError(f"there is no executor '{asked.executor}'{suggest(asked.executor, EXECUTORS)}")
    grid = read_grid(grid_file)
    points = resolve(grid, str(grid_file))
    KINDS[kind].check(points)
    if asked.dry_run:
        return _overview(points)
    executor = EXECUTORS[asked.executor](grid.threads)
    results = carry_out(points, directory, executor, threads=grid.threads, retry=asked.retry)
    return write_study(KINDS[kind], points, results, directory)


def resolve(grid: Grid, source: str) -> list[Point]:
    """The points of a grid with their recipes in full.

    Args:
        grid: the document.
        source: opens the message of an error.

    Raises:
        UserError: a key is no recipe's, values do not fit together, a budget is too small for a model, or all points
            take more than ``max_flops``.
    """
    points = [_point(grid, choice, source) for choice in expand(grid)]
    flops = [point.flops for point in {point.key: point for point in points}.values()]
    if grid.max_flops is not None:
        if None in flops:
            raise UserError(
                f"{source}: max_flops bounds what all points take, and the length of some is measured in minutes or "
                "epochs; give their stages steps or tokens, or leave max_flops out."
            )
        total = sum(one for one in flops if one is not None)
        if total > grid.max_flops:
            raise UserError(
                f"{source}: its {len(flops)} points take {total:.3g} FLOPs of training and max_flops allows "
                f"{grid.max_flops:.3g}. Leave out points or seeds, make runs shorter, or raise max_flops."
            )
    return points


def _point(grid: Grid, choice: Choice, source: str) -> Point:
    settings = {**choice.settings, "train.seed": choice.seed}
    budget = settings.pop(_FLOPS, None)
    try:
        recipe = load_recipe(grid.recipe, _as_settings(settings))
        if budget is not None:
            settings["stage.0.steps"] = _steps_of(recipe, budget)
            recipe = load_recipe(grid.recipe, _as_settings(settings))
        recipe = located(recipe)
    except UserError as error:
        raise UserError(f"{source}: {choice.name}: {error}") from None
    counted, text, tokens = count_model(recipe.model), dry(recipe), _tokens(recipe)
    return Point(
        key=hashlib.sha256(f"# threads = {grid.threads}\n{text}".encode()).hexdigest()[:_KEY_CHARACTERS],
        name=choice.name,
        coordinates=choice.coordinates,
        seed=choice.seed,
        recipe=text,
        parameters=counted.parameters,
        active_parameters=counted.active_parameters,
        tokens=None if tokens is None else sum(tokens),
        flops=None
        if tokens is None
        else sum(
            many * counted.training_flops_per_token(stage.seq_len)
            for many, stage in zip(tokens, recipe.stage, strict=True)
        ),
    )


def _steps_of(recipe: Recipe, budget: Any) -> int:
    """The steps of the only stage, so that its training takes ``budget`` operations or a little less."""
    if len(recipe.stage) != 1 or recipe.stage[0].steps is None or not isinstance(recipe.stage[0].batch_tokens, int):
        raise UserError(
            "an axis 'flops' sets the steps of the recipe's stage, so that the recipe has one stage, whose length is "
            "in steps and whose batch has one size."
        )
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise UserError(f"flops is a number of training operations above 0 (given: {budget!r}).")
    stage = recipe.stage[0]
    of_a_step = stage.batch_schedule.tokens_at(0) * count_model(recipe.model).training_flops_per_token(stage.seq_len)
    if budget < _LEAST_STEPS * of_a_step:
        raise UserError(
            f"{budget:.3g} FLOPs are {budget / of_a_step:.2g} steps of this model, and a run needs at least "
            f"{_LEAST_STEPS}: give {_LEAST_STEPS * of_a_step:.2g} FLOPs, a smaller model or a smaller batch."
        )
    return int(budget / of_a_step)


def _tokens(recipe: Recipe) -> list[int] | None:
    """Of each stage; None where one's length is measured as it runs."""
    found = []
    for stage in recipe.stage:
        steps = stage.total_steps
        if steps is None:
            return None
        found.append(stage.batch_schedule.tokens_before(steps))
    return found


def _as_settings(settings: dict[str, Any]) -> list[str]:
    """As ``--set`` takes them; JSON's numbers, texts and lists are TOML's."""
    return [f"{path}={json.dumps(value)}" for path, value in settings.items()]


def _overview(points: Sequence[Point]) -> str:
    lines = ["| point | parameters | tokens | FLOPs | key |", "|---|---|---|---|---|"]
    for point in points:
        tokens = "measured" if point.tokens is None else count_text(point.tokens)
        flops = "measured" if point.flops is None else f"{point.flops:.3g}"
        lines.append(f"| {point.name} | {count_text(point.parameters)} | {tokens} | {flops} | {point.key} |")
    return "\n".join(lines)
