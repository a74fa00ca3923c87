"""From the stages of a recipe to what :mod:`leyden.train.run` trains, and how many steps fit into minutes."""

import functools
from bisect import bisect_right
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from leyden.align.chats.batches import HeldOutChats, fit_chats
from leyden.align.preference.batches import HeldOutPairs, fit_pairs
from leyden.align.process_rewards.batches import HeldOutSolutions, fit_solutions
from leyden.align.rollouts.held_out import HeldOutReward
from leyden.checkpoint.starting_model import StartingModel
from leyden.core.log import say
from leyden.data.loader.held_out import HeldOutBatches
from leyden.data.loader.prefetch import Prefetched
from leyden.parallel import RankGroup
from leyden.recipes.batches import epoch_steps, make_batches, tell_plan
from leyden.recipes.multi_token import mtp_weight_of
from leyden.recipes.objectives import OBJECTIVES, ON_PROMPTS, TRAINS_ON
from leyden.recipes.pace import Pace
from leyden.recipes.prepare import Prepared
from leyden.recipes.reference import StageReference, has_reference
from leyden.recipes.rollouts import held_out_rewards, rollout_stage
from leyden.recipes.schema import Recipe, TrainingStage
from leyden.recipes.spike_facts import BatchFacts
from leyden.recipes.watching import AtTheEnd, TaskWatcher
from leyden.train import Batches, BatchSchedule, Progress, StageRun, TrainState, build_state, train_stages
from leyden.train.held_out import HeldOut
from leyden.train.observing import Watcher
from leyden.train.run import time_steps

_MARGIN = 0.95
"""Of the time asked for, what is planned: checkpoints take some, and no step may start late."""


def settle_steps(recipe: Recipe, prepared: Prepared, rank_group: RankGroup, progress: Progress | None) -> Recipe:
    """``recipe`` with a number of steps for every stage, of the one that ``progress`` is in no fewer than it has taken.

    A stage given in minutes is timed over a few steps of a model that is then thrown away; nothing later reads a clock.
    All ranks take those steps, and the first rank's clock decides. One given in epochs follows from its data.
    """
    stages = list(recipe.stage)
    for index, stage in enumerate(recipe.stage):
        if stage.total_steps is None:
            taken = progress.stage_step if progress is not None and progress.stage == index else 0
            if stage.epochs is not None:
                steps = max(taken, epoch_steps(recipe, index, prepared))
                say(f"stage {stage.name}: {steps:,} steps go through its data {stage.epochs:g} times")
            else:
                steps = max(taken, _steps_that_fit(recipe, index, prepared, rank_group))
            stages[index] = stage.model_copy(update={"steps": steps})
    return recipe.model_copy(update={"stage": tuple(stages)})


def train(
    recipe: Recipe,
    prepared: Prepared,
    directory: Path,
    how_to_resume: str,
    rank_group: RankGroup,
    start: StartingModel | None = None,
) -> TrainState:
    """Train through all stages, from the newest checkpoint in ``directory`` if there is one.

    Args:
        recipe: settled.
        prepared: the tokens of every stage that is to come.
        directory: the run's.
        how_to_resume: what an interrupted user is told.
        rank_group: the ranks that train; all of them call this.
        start: the model that a run without a checkpoint begins from; None: initial weights.

    Returns:
        The state at the end of the last stage.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all is saved.
        UserError: the disk is full, or the loss stays not finite.
    """
    held_out = [document.text for document in prepared.held_out]
    tasks = TaskWatcher(recipe, prepared.tokenizer, held_out) if recipe.evaluate.task else None
    state, described = _new_state(recipe, rank_group), recipe.model_dump(mode="json")
    with held_out_rewards(recipe, prepared.tokenizer) as rewards:
        stages = _stages(recipe, prepared, directory, how_to_resume, state, tasks, rewards)
        train_stages(
            state, stages, recipe.train, directory, how_to_resume=how_to_resume, start=start, described=described
        )
    return state


def _stages(
    recipe: Recipe,
    prepared: Prepared,
    directory: Path,
    how_to_resume: str,
    state: TrainState,
    tasks: TaskWatcher | None,
    rewards: list[tuple[int, HeldOutReward]],
) -> list[StageRun]:
    """The stages as training takes them; of ``rewards`` each is measured during its stage, and at the end of others."""
    stages = []
    for index, stage in enumerate(recipe.stage):
        assert stage.total_steps is not None, "settled before training"
        watchers: list[Watcher] = []
        if tasks is not None:
            watchers.append(functools.partial(tasks, goes_on=index < len(recipe.stage) - 1))
        watchers += [watcher if of == index else AtTheEnd(watcher) for of, watcher in rewards]
        if stage.objective in ON_PROMPTS:
            rollouts = rollout_stage(recipe, index, prepared.tokenizer, state, directory, stage.total_steps)
            stages.append(replace(rollouts, watchers=watchers))
            continue
        pace = (
            [Pace(stage.name, stage.minutes, stage.total_steps, stage.batch_schedule, how_to_resume)]
            if stage.minutes
            else []
        )
        made = _stage_run(recipe, index, prepared, state.rank_group, directory, stage.total_steps)
        stages.append(replace(made, callbacks=pace, watchers=watchers))
    return stages


def _new_state(recipe: Recipe, rank_group: RankGroup) -> TrainState:
    longest = max(stage.seq_len for stage in recipe.stage)
    return build_state(
        recipe.model, recipe.train, row_tokens=longest, rank_group=rank_group, parallel_config=recipe.parallel
    )


def _stage_run(
    recipe: Recipe,
    index: int,
    prepared: Prepared,
    rank_group: RankGroup,
    directory: Path | None = None,
    steps: int = 1,
) -> StageRun:
    """Stage ``index`` as training takes it.

    What it will read is said once it begins, unless there is no ``directory`` of its run: then it is only timed.
    """
    stage = recipe.stage[index]
    plans = None if directory is None else directory / "plans"
    reference = StageReference(recipe, index, prepared, directory) if has_reference(stage) else None

    def batches() -> AbstractContextManager[Batches]:
        made = make_batches(recipe, index, prepared, plans, reference and reference.values)
        if plans is not None:
            tell_plan(stage, made, steps)
        rank, ranks = rank_group.share
        return Prefetched(made, rank=rank, ranks=ranks)

    return StageRun(
        name=stage.name,
        objective=OBJECTIVES[stage.objective].make(stage),
        learning_rate=stage,
        steps=steps,
        seq_len=stage.seq_len,
        begin=(lambda _: None) if reference is None else reference.begin,
        batches=batches,
        micro_batches=stage.batch_schedule.micro_batches_at,
        max_batch_factor=stage.max_batch_factor,
        mtp_weight=mtp_weight_of(recipe, stage, "mtp_weight" in OBJECTIVES[stage.objective].keys),
        rope_theta=stage.rope_theta,
        rope_scaling=stage.rope_scaling,
        held_out=lambda: _held_out(recipe, stage, prepared, rank_group, reference),
        batch_facts=BatchFacts(lambda: make_batches(recipe, index, prepared, plans)),
    )


def _held_out(
    recipe: Recipe, stage: TrainingStage, prepared: Prepared, rank_group: RankGroup, reference: StageReference | None
) -> HeldOut | None:
    """This rank's share of the documents or rows that the loss is measured on between steps."""
    every, per_step = recipe.evaluate.every_steps, stage.batch_schedule.fewest_micro_batches
    data, bounds = prepared.of(stage), recipe.evaluate.length_bounds
    if not every or not (data.held_out or data.held_out_rows):
        return None
    how: dict[str, Any] = {
        "num_tokens": recipe.evaluate.held_out_tokens,
        "seq_len": stage.seq_len,
        "batch_tokens": stage.micro_batch,
        "multiple": per_step,
    }
    too_long, rows = (stage.data or recipe.data).too_long, TRAINS_ON.get(stage.objective)
    if data.held_out_rows is not None and rows == "preferences":
        pairs = fit_pairs(data.held_out_rows, stage.seq_len, too_long)
        batches = HeldOutPairs(pairs, reference=reference and reference.values, **how)
        return HeldOut.share(batches, rank_group, every_steps=every, per_step=per_step)
    if data.held_out_rows is not None and rows == "solutions":
        batches = HeldOutSolutions(fit_solutions(data.held_out_rows, stage.seq_len, too_long), **how)
        return HeldOut.share(batches, rank_group, every_steps=every, per_step=per_step)
    how["length_bounds"] = bounds
    if data.held_out_rows is not None:
        chats = fit_chats(data.held_out_rows, stage.seq_len, too_long)
        batches = HeldOutChats(chats, stage.normalise, prepared.tokenizer, **how)
    else:
        batches = HeldOutBatches(data.held_out, prepared.tokenizer, **how)
    return HeldOut.share(batches, rank_group, every_steps=every, per_step=per_step, length_bounds=bounds)


def _steps_that_fit(recipe: Recipe, index: int, prepared: Prepared, rank_group: RankGroup) -> int:
    """How many steps of stage ``index`` fit its minutes."""
    stage, state = recipe.stage[index], _new_state(recipe, rank_group)
    assert stage.minutes is not None, "a stage without steps or tokens has minutes"
    batch, of_first = stage.batch_schedule, stage.batch_schedule.micro_batches_at(0)
    timed = replace(_stage_run(recipe, index, prepared, rank_group), micro_batches=lambda step: of_first)
    seconds, held_out_seconds = time_steps(state, timed, recipe.train)
    planned = stage.minutes * 60 * _MARGIN
    steps = rank_group.first(lambda: _steps_in(planned, seconds, held_out_seconds, batch))
    say(
        f"stage {stage.name}: {seconds:.2f} s a step of {batch.tokens_at(0):,} tokens; "
        f"{steps} steps fit {stage.minutes:g} minutes"
    )
    return steps


def _steps_in(planned: float, seconds: float, held_out_seconds: float, batch: BatchSchedule) -> int:
    """How many steps fit ``planned`` seconds; at least one.

    Args:
        planned: seconds.
        seconds: of a step of the first size; others take longer in proportion.
        held_out_seconds: what measurements add to each step.
        batch: its size at every step.
    """

    def taken(steps: int) -> float:
        return batch.tokens_before(steps) / batch.tokens_at(0) * seconds + steps * held_out_seconds

    return max(1, bisect_right(range(1 << 40), planned, key=taken) - 1)
