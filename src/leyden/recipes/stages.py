"""The stages of a recipe: what is measured before the first step, and the training itself."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from leyden.core.device import compute_dtype, default_device, matmul_flops_per_second
from leyden.core.log import progress, say
from leyden.data import PackedBatches
from leyden.data.loader.mixture import Mixture, MixturePoint
from leyden.data.mixing import MixedBatches
from leyden.data.packing import Batches
from leyden.data.prefetch import Prefetched
from leyden.model import HybridLM, count_model
from leyden.recipes.prepare import Prepared
from leyden.recipes.schema import Recipe, Stage
from leyden.train import FitSettings, MasterAdamW, Objective, Pretrain, TrainState, fit, train_step

_OBJECTIVES: dict[str, Callable[[], Objective]] = {"pretrain": Pretrain}

_WARM_STEPS, _TIMED_STEPS = 3, 5
_MARGIN = 0.95
"""Of the time asked for, what is planned: checkpoints take some, and no step may start late."""


def settle(recipe: Recipe, prepared: Prepared) -> Recipe:
    """``recipe`` with a dtype instead of ``auto`` and with a number of steps for every stage.

    A stage given in minutes is timed over a few steps of a model that is then thrown away; nothing later reads a clock.
    """
    if recipe.train.dtype == "auto":
        dtype, reason = compute_dtype(default_device())
        say(f"computing in {reason}")
        name = str(dtype).removeprefix("torch.")
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"dtype": name})})
    stages = [
        stage if stage.total_steps else stage.model_copy(update={"steps": _measure(recipe, index, prepared)})
        for index, stage in enumerate(recipe.stage)
    ]
    return recipe.model_copy(update={"stage": tuple(stages)})


def train(recipe: Recipe, prepared: Prepared, directory: Path, how_to_resume: str) -> HybridLM:
    """Train through all stages, from the newest checkpoint in ``directory`` if there is one.

    Args:
        recipe: settled.
        prepared: the tokens.
        directory: the run's.
        how_to_resume: what an interrupted user is told.

    Returns:
        The trained model in float32.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; all is saved.
        UserError: the disk is full, or the loss stays not finite.
    """
    model = _new_model(recipe)
    state = TrainState(model, MasterAdamW(model, recipe.train.optimizer))
    if state.resume(directory):
        say(f"going on from step {state.step}")
    for index, stage in enumerate(recipe.stage):
        _enter(model, stage)
        if index < state.stage:
            continue
        objective = _OBJECTIVES[stage.objective]()
        settings = _fit_settings(recipe, stage, how_to_resume)
        batches = _batches(recipe, index, prepared, directory / "plans")
        _tell_mixture(batches, settings.total_steps)
        with Prefetched(batches) as ahead:
            fit(state, ahead, objective, stage.learning_rate(), settings, run_dir=directory, stage=index)
    return _in_float32(model, state.optimizer)


def _in_float32(model: HybridLM, optimizer: MasterAdamW) -> HybridLM:
    """``model`` with the optimizer's master weights: what was learnt, before it was rounded to compute."""
    model.float()
    for name, master in optimizer.masters().items():
        model.get_parameter(name).data.copy_(master)
    return model


def _new_model(recipe: Recipe) -> HybridLM:
    torch.manual_seed(recipe.train.seed)
    dtype = getattr(torch, recipe.train.dtype)
    return HybridLM(recipe.model, seed=recipe.train.seed).to(default_device(), dtype)


def _tell_mixture(batches: Batches, steps: int) -> None:
    """Say what each source will give, before anything is trained.

    Raises:
        UserError: one would repeat more often than the mixture allows.
    """
    if isinstance(batches, MixedBatches):
        for part in batches.plan(steps):
            bound = f", up to {part.up_to:,} tokens long" if part.up_to else ""
            say(f"{part.source}{bound}: {part.tokens:,} tokens, its documents {part.epochs:.2f} times")


def _batches(recipe: Recipe, index: int, prepared: Prepared, plans: Path | None = None) -> Batches:
    stage = recipe.stage[index]
    shards, seed = prepared.shards, recipe.train.seed + index
    if stage.mixture is None and len(shards) == 1:
        return PackedBatches(
            *shards.values(),
            seq_len=stage.seq_len,
            batch_tokens=stage.micro_batch,
            seed=seed,
            packing=stage.packing,
            plans=plans,
        )
    as_they_are = MixturePoint(weights={name: float(group.num_tokens) for name, group in shards.items()})
    return MixedBatches(
        shards,
        stage.mixture or Mixture(point=(as_they_are,)),
        seq_len=stage.seq_len,
        batch_tokens=stage.micro_batch,
        seed=seed,
        batches_per_step=stage.batch_tokens // stage.micro_batch,
        plans=plans,
    )


def _enter(model: HybridLM, stage: Stage) -> None:
    """Take over what a stage changes in the model's configuration."""
    if stage.rope_theta is not None:
        model.config = model.config.model_copy(update={"rope_theta": stage.rope_theta})


def _fit_settings(recipe: Recipe, stage: Stage, how_to_resume: str) -> FitSettings:
    assert stage.total_steps is not None, "settled before training"
    section = recipe.train
    return FitSettings(
        stage=stage.name,
        total_steps=stage.total_steps,
        micro_batches=stage.batch_tokens // stage.micro_batch,
        clip_norm=section.clip_norm,
        checkpoint_steps=section.checkpoint_steps,
        keep_checkpoints=section.keep_checkpoints,
        max_skipped_steps=section.max_skipped_steps,
        flops_per_token=count_model(recipe.model).training_flops_per_token(stage.seq_len),
        peak_flops_per_second=matmul_flops_per_second(getattr(torch, section.dtype), default_device().type),
        how_to_resume=how_to_resume,
    )


def _measure(recipe: Recipe, index: int, prepared: Prepared) -> int:
    """How many steps of stage ``index`` fit its minutes."""
    stage = recipe.stage[index]
    assert stage.minutes is not None, "a stage without steps or tokens has minutes"
    model = _new_model(recipe)
    state, batches = TrainState(model, MasterAdamW(model, recipe.train.optimizer)), _batches(recipe, index, prepared)
    objective = _OBJECTIVES[stage.objective]()
    seconds = []
    with progress(f"timing {stage.name}", _WARM_STEPS + _TIMED_STEPS, "steps") as bar:
        for _ in range(_WARM_STEPS + _TIMED_STEPS):
            started = time.perf_counter()
            micro_batches = [next(batches) for _ in range(stage.batch_tokens // stage.micro_batch)]
            train_step(state, micro_batches, objective, lr=0.0, clip_norm=recipe.train.clip_norm)
            seconds.append(time.perf_counter() - started)
            bar.advance()
    step_seconds = statistics.median(seconds[_WARM_STEPS:])
    steps = max(1, int(stage.minutes * 60 * _MARGIN / step_seconds))
    say(
        f"stage {stage.name}: {step_seconds:.2f} s a step of {stage.batch_tokens:,} tokens; "
        f"{steps} steps fit {stage.minutes:g} minutes"
    )
    return steps
