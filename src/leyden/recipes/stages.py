"""The stages of a recipe: what is measured before the first step, and the training itself."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from leyden import parallel
from leyden.checkpoint.export import export
from leyden.checkpoint.pieces import Piece
from leyden.core.device import compute_dtype, default_device, matmul_flops_per_second
from leyden.core.log import progress, say
from leyden.data.loader.held_out import HeldOutBatches
from leyden.data.loader.packing import Batches
from leyden.data.loader.prefetch import Prefetched
from leyden.model import HybridLM, count_model
from leyden.parallel import Team, Weights
from leyden.parallel.recompute import install_compile, install_recompute
from leyden.recipes.batches import make_batches, tell_mixture
from leyden.recipes.pace import Pace
from leyden.recipes.prepare import Prepared
from leyden.recipes.schema import Recipe, Stage
from leyden.tokenizer import Tokenizer
from leyden.train import FitSettings, MasterAdamW, Objective, Pretrain, Progress, TrainState, fit, train_step
from leyden.train.held_out import HeldOut, measure
from leyden.train.sinks import Sink, open_sinks

_OBJECTIVES: dict[str, Callable[[], Objective]] = {"pretrain": Pretrain}

_WARM_STEPS, _TIMED_STEPS = 3, 5
_MARGIN = 0.95
"""Of the time asked for, what is planned: checkpoints take some, and no step may start late."""


def settle_dtype(recipe: Recipe) -> Recipe:
    """``recipe`` with a dtype instead of ``auto``."""
    if recipe.train.dtype != "auto":
        return recipe
    dtype, reason = compute_dtype(default_device())
    say(f"computing in {reason}")
    name = str(dtype).removeprefix("torch.")
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"dtype": name})})


def settle_steps(recipe: Recipe, prepared: Prepared, team: Team, progress: Progress | None) -> Recipe:
    """``recipe`` with a number of steps for every stage, of the one that ``progress`` is in no fewer than it has taken.

    A stage given in minutes is timed over a few steps of a model that is then thrown away; nothing later reads a clock.
    All ranks take those steps, and the first rank's clock decides.
    """
    stages = list(recipe.stage)
    for index, stage in enumerate(recipe.stage):
        if stage.total_steps is None:
            taken = progress.stage_step if progress is not None and progress.stage == index else 0
            steps = max(taken, _measure(recipe, index, prepared, team))
            stages[index] = stage.model_copy(update={"steps": steps})
    return recipe.model_copy(update={"stage": tuple(stages)})


def train(recipe: Recipe, prepared: Prepared, directory: Path, how_to_resume: str, team: Team) -> TrainState:
    """Train through all stages, from the newest checkpoint in ``directory`` if there is one.

    Args:
        recipe: settled.
        prepared: the tokens.
        directory: the run's.
        how_to_resume: what an interrupted user is told.
        team: the ranks that train; all of them call this.

    Returns:
        The state at the end of the last stage.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all is saved.
        UserError: the disk is full, or the loss stays not finite.
    """
    state = _new_state(recipe, team)
    if state.resume(directory):
        say(f"going on from step {state.step}")
    names = recipe.train.sinks if team.rank == 0 else ()
    with open_sinks(names, directory, state.step, recipe.model_dump(mode="json")) as sinks:
        for index, stage in enumerate(recipe.stage):
            _enter(state, stage)
            if index >= state.stage:
                _train_stage(state, recipe, index, prepared, directory, how_to_resume, sinks)
    return state


def _train_stage(
    state: TrainState,
    recipe: Recipe,
    index: int,
    prepared: Prepared,
    directory: Path,
    how_to_resume: str,
    sinks: Sequence[Sink],
) -> None:
    stage, team = recipe.stage[index], state.team
    settings = _fit_settings(recipe, stage, how_to_resume, team)
    batches = make_batches(recipe, index, prepared, directory / "plans")
    tell_mixture(batches, settings.total_steps)
    pace = [Pace(stage.name, stage.minutes, settings.total_steps, how_to_resume)] if stage.minutes else []
    with _own_share(batches, team) as ahead:
        fit(
            state,
            ahead,
            _OBJECTIVES[stage.objective](),
            stage.learning_rate(),
            settings,
            run_dir=directory,
            stage=index,
            held_out=_held_out(recipe, stage, prepared, team),
            sinks=sinks,
            callbacks=pace,
        )


def _new_state(recipe: Recipe, team: Team) -> TrainState:
    """The model with its initial weights, the same whatever the plan, and its optimizer."""
    section, settings = recipe.train, recipe.parallel
    torch.manual_seed(section.seed)
    dtype = getattr(torch, section.dtype)
    host = torch.device("cpu") if settings.offload_optimizer else None
    if team.mesh is None:
        model = HybridLM(recipe.model, seed=section.seed).to(default_device())
        if settings.compile:
            install_compile(model, default_device())
        install_recompute(model, settings.activation_checkpointing)
        weights = Weights.alone(model)
    else:
        with torch.device("meta"):
            whole = HybridLM(recipe.model)
        if host is not None:
            whole.to(dtype)  # the masters are elsewhere
        longest = max(stage.seq_len for stage in recipe.stage)
        attached = parallel.attach(whole, team.mesh, dtype, seed=section.seed, row_tokens=longest)
        model, weights = attached.model, attached.weights
    optimizer = MasterAdamW(weights, section.optimizer, host)
    if team.mesh is None:
        model.to(dtype)  # now, so that the masters begin unrounded, as those of many ranks do
    return TrainState(model, optimizer, team, async_checkpoint=section.async_checkpoint)


def _held_out(recipe: Recipe, stage: Stage, prepared: Prepared, team: Team) -> HeldOut | None:
    """This rank's share of the documents that the loss is measured on between steps."""
    every, per_step = recipe.evaluate.every_steps, stage.batch_tokens // stage.micro_batch
    if not every or not prepared.held_out:
        return None
    batches = HeldOutBatches(
        prepared.held_out,
        prepared.tokenizer,
        num_tokens=recipe.evaluate.held_out_tokens,
        seq_len=stage.seq_len,
        batch_tokens=stage.micro_batch,
        multiple=per_step,
    )
    own = [batches.share(number, *team.share) for number in range(batches.num_batches)]
    return HeldOut(every, [own[first : first + per_step] for first in range(0, len(own), per_step)], batches.num_bytes)


def _own_share(batches: Batches, team: Team) -> Prefetched:
    """What this rank has of every batch."""
    rank, ranks = team.share
    return Prefetched(batches, rank=rank, ranks=ranks)


def save_trained(state: TrainState, tokenizer: Tokenizer, path: Path) -> None:
    """Write the model in float32, the optimizer's masters: what was learnt, before it was rounded to compute.

    All ranks of the team call this, and none ever holds the whole model.
    """
    optimizer, config = state.optimizer, cast("HybridLM", state.model).config
    learnt = {name: Piece(master, optimizer.weights[name].part) for name, master in optimizer.masters().items()}
    export(learnt, config, tokenizer, path, layout="transformers", mesh=state.team.mesh)


def _enter(state: TrainState, stage: Stage) -> None:
    """Take over what a stage changes in the model's configuration."""
    model: Any = state.model  # a HybridLM, or the stages of a pipeline, which all take it over
    if stage.rope_theta is not None:
        model.config = model.config.model_copy(update={"rope_theta": stage.rope_theta})


def _fit_settings(recipe: Recipe, stage: Stage, how_to_resume: str, team: Team) -> FitSettings:
    assert stage.total_steps is not None, "settled before training"
    section, world = recipe.train, 1 if team.mesh is None else team.mesh.plan.world
    rate = matmul_flops_per_second(getattr(torch, section.dtype), default_device().type)
    return FitSettings(
        stage=stage.name,
        total_steps=stage.total_steps,
        micro_batches=stage.batch_tokens // stage.micro_batch,
        clip_norm=section.clip_norm,
        checkpoint_steps=section.checkpoint_steps,
        keep_checkpoints=section.keep_checkpoints,
        max_skipped_steps=section.max_skipped_steps,
        flops_per_token=count_model(recipe.model).training_flops_per_token(stage.seq_len),
        peak_flops_per_second=world * rate,
        how_to_resume=how_to_resume,
    )


def _measure(recipe: Recipe, index: int, prepared: Prepared, team: Team) -> int:
    """How many steps of stage ``index`` fit its minutes."""
    stage = recipe.stage[index]
    assert stage.minutes is not None, "a stage without steps or tokens has minutes"
    state = _new_state(recipe, team)
    objective, minutes = _OBJECTIVES[stage.objective](), stage.minutes
    held_out, held_out_seconds = _held_out(recipe, stage, prepared, team), 0.0
    seconds = []
    with (
        _own_share(make_batches(recipe, index, prepared), team) as batches,
        progress(f"timing {stage.name}", _WARM_STEPS + _TIMED_STEPS, "steps") as bar,
    ):
        for _ in range(_WARM_STEPS + _TIMED_STEPS):
            started = time.perf_counter()
            micro_batches = [next(batches) for _ in range(stage.batch_tokens // stage.micro_batch)]
            train_step(state, micro_batches, objective, lr=0.0, clip_norm=recipe.train.clip_norm)
            seconds.append(time.perf_counter() - started)
            bar.advance()
        if held_out is not None:
            started = time.perf_counter()
            measure(state, held_out, objective)
            held_out_seconds = (time.perf_counter() - started) / held_out.every_steps
    step_seconds = statistics.median(seconds[_WARM_STEPS:])
    steps = team.first(lambda: max(1, int(minutes * 60 * _MARGIN / (step_seconds + held_out_seconds))))
    say(
        f"stage {stage.name}: {step_seconds:.2f} s a step of {stage.batch_tokens:,} tokens; "
        f"{steps} steps fit {stage.minutes:g} minutes"
    )
    return steps
