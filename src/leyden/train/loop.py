"""The loop around :func:`leyden.train.step.train_step`; it knows neither the objective nor what a batch is.

No decision here reads a clock or draws a random number, so that a run killed and resumed is the run never killed; and
all ranks of a group take the same decisions at the same step.
"""

import datetime as dt
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import Field

from leyden.core.config import Config
from leyden.core.errors import Interrupted, UserError
from leyden.core.log import logger, progress
from leyden.parallel.objective import ROUTER_METRICS, Objective
from leyden.train.held_out import HeldOut, measure
from leyden.train.learning_rate import LearningRate
from leyden.train.metrics import MetricsLog
from leyden.train.signals import StopRequest
from leyden.train.sinks import Sink
from leyden.train.state import Batches, TrainState
from leyden.train.step import StepResult, train_step

_log = logger(__name__)

Callback = Callable[[TrainState, StepResult], None]


class FitSettings(Config):
    """One stage of a run, as the loop sees it."""

    stage: str
    """Its name, for the metrics and the progress bar."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of this stage."""
    micro_batches: int = Field(default=1, ge=1)
    """How many batches one optimizer step takes."""
    clip_norm: float = Field(default=1.0, gt=0)
    checkpoint_steps: int = Field(ge=1)
    """A checkpoint is written every so many steps of the run, and at the end of the stage."""
    keep_checkpoints: int = Field(default=2, ge=1)
    max_skipped_steps: int = Field(default=10, ge=1)
    """The run stops when so many steps in a row are not finite, or have no token to learn."""
    flops_per_token: float = Field(gt=0)
    """Forward and backward, for model-FLOPs utilisation."""
    peak_flops_per_second: float = Field(gt=0)
    """The measured rate of matrix products that utilisation is stated against."""
    how_to_resume: str
    """What the user is told to do after an interruption."""
    shows_progress: bool = True
    """Whether the loop shows a progress bar; False where its caller shows one of many runs."""


def fit(
    state: TrainState,
    batches: Batches,
    objective: Objective,
    learning_rate: LearningRate,
    settings: FitSettings,
    *,
    run_dir: Path,
    stage: int = 0,
    held_out: HeldOut | None = None,
    sinks: Sequence[Sink] = (),
    after_step: Sequence[Callback] = (),
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train to the end of a stage, from wherever ``state`` is in it.

    Args:
        state: updated in place; a stage that it has finished is left at once. All ranks of its group call this.
        batches: of this stage, at their beginning; moved to where ``state`` stopped.
        objective: what is minimised.
        learning_rate: over the steps of this stage.
        settings: the rest.
        run_dir: gets ``metrics.jsonl`` and ``checkpoints/``; the same for all ranks.
        stage: index of the stage in the run.
        held_out: documents on which the loss is measured now and then; it changes nothing of the training.
        sinks: get every line of ``metrics.jsonl`` too; of several ranks, the first's.
        after_step: called on every rank as soon as the optimizer has taken a step, before anything is measured or
            saved; these may change the model, in the same way on all ranks that have the same part of it.
        callbacks: called after every step once it is in the metrics, before its checkpoint.

    Raises:
        ValueError: a metric of the objective has the name of another.
        Interrupted: Ctrl-C or SIGTERM, to any rank; the step was finished and a checkpoint written.
        UserError: the batches end early, the disk fails, or too many steps in a row are skipped.
    """
    _check_names(objective)
    state.enter_stage(stage, batches)
    run_dir.mkdir(parents=True, exist_ok=True)
    rank_group, total = state.rank_group, settings.total_steps
    metrics = MetricsLog(run_dir / "metrics.jsonl", last_step=state.step, writes=rank_group.rank == 0, sinks=sinks)
    measured: dict[str, float] = {}
    shown = progress(f"training: {settings.stage}", total, "steps") if settings.shows_progress else nullcontext()
    with StopRequest() as stop, shown as bar:
        if bar is not None:
            bar.advance(state.stage_step)
        taken = steps(state, batches, objective, learning_rate, settings, stop=lambda: stop.made, after_step=after_step)
        for result, lr, seconds in taken:
            rate = result.tokens / seconds
            state.check_saving()
            record = _record(state, result, settings, objective.counts, lr=lr, tokens_per_second=rate)
            if held_out and (state.step % held_out.every_steps == 0 or state.stage_step == total):
                measured = measure(state, held_out, objective)
                record |= {name: _finite(value) for name, value in measured.items()}
            metrics.append(record)
            if bar is not None:
                unseen = f", unseen {measured['held_out_loss']:.3f}" if measured else ""
                bar.advance(1, f"loss {result.loss:.3f}{unseen}, {rate:.0f} tokens/s")
            _stop_if_skipped_too_often(state, result, settings, objective.counts)
            for callback in callbacks:
                callback(state, result)
            # What a rank was asked since the sums were exchanged the others do not know yet; one alone has no others.
            stopping = result.stop or (rank_group.alone and stop.made)
            if not (stopping or state.stage_step == total or state.step % settings.checkpoint_steps == 0):
                continue
            rank_group.at("the checkpoint", state.step)
            metrics.sync()
            state.save(run_dir, keep=settings.keep_checkpoints)
            stopping = rank_group.any(stop.made)
            if stopping or state.stage_step == total:
                state.finish_saving()
            if stopping:
                raise Interrupted(f"Stopped after step {state.step}; everything is saved. {settings.how_to_resume}")


def steps(
    state: TrainState,
    batches: Batches,
    objective: Objective,
    learning_rate: LearningRate,
    settings: FitSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    after_step: Sequence[Callback] = (),
) -> Iterator[tuple[StepResult, float, float]]:
    """Take the steps that are left of a stage, each when it is asked for.

    Args:
        state, batches, objective, learning_rate, settings: as for :func:`fit`.
        stop: whether this rank was asked to stop, as for :func:`leyden.train.step.train_step`.
        after_step: as for :func:`fit`.

    Yields:
        What a step did, its learning rate, and the seconds that it took, with those for its batches.

    Raises:
        UserError: the batches end early.
    """
    while state.stage_step < settings.total_steps:
        started = time.perf_counter()
        state.rank_group.at("the next batches", state.step + 1)
        lr = learning_rate.lr_at(state.stage_step, settings.total_steps)
        micro_batches = _next_batches(batches, settings, state)
        result = train_step(state, micro_batches, objective, lr=lr, clip_norm=settings.clip_norm, stop=stop)
        for hook in after_step:
            hook(state, result)
        yield result, lr, time.perf_counter() - started


def _next_batches(batches: Batches, settings: FitSettings, state: TrainState) -> list[Any]:
    try:
        return [next(batches) for _ in range(settings.micro_batches)]
    except StopIteration:
        state.finish_saving()
        raise UserError(
            f"stage '{settings.stage}': the data ended before step {state.stage_step + 1} of "
            f"{settings.total_steps}; give more text, or fewer steps or tokens."
        ) from None


def _stop_if_skipped_too_often(state: TrainState, result: StepResult, settings: FitSettings, counts: str) -> None:
    skipped = state.skipped_in_a_row
    if not skipped:
        return
    why = "the loss or its gradient is not finite"
    if not result.weight:
        why = f"none of its {result.tokens:,} tokens has anything to learn from: it counts 0 {counts}"
    _log.warning("step %d: %s; the step is skipped", state.step, why)
    if skipped >= settings.max_skipped_steps:
        state.finish_saving()
        cure = "lower the learning rate from an earlier step on (leyden run --from), or look at the data of that step"
        if not result.weight:
            cure = f"look at the {counts} of the data, or allow more of such steps (--set train.max_skipped_steps=N)"
        raise UserError(
            f"stage '{settings.stage}': {skipped} steps in a row were skipped, from step {state.step - skipped + 1} "
            f"on; of the last, {why}. To go on, {cure}."
        )


_TAKEN = {
    "stage",
    "step",
    "time",
    "tokens",
    "grad_norm",
    "lr",
    "skipped",
    "tokens_per_second",
    "mfu",
    "loss",
    "aux_loss",
}
"""What every line of metrics has, whatever is minimised, beside :data:`ROUTER_METRICS`."""


def _check_names(objective: Objective) -> None:
    names = [objective.counts, *objective.metrics]
    twice = sorted({name for name in names if names.count(name) > 1 or name in _TAKEN or name in ROUTER_METRICS})
    if twice:
        raise ValueError(
            f"{type(objective).__name__} counts or measures '{twice[0]}', which is the name of something else in "
            f"metrics.jsonl; take another than {', '.join(sorted(_TAKEN | {*ROUTER_METRICS}))}, and each name once."
        )


def _record(
    state: TrainState, result: StepResult, settings: FitSettings, counts: str, *, lr: float, tokens_per_second: float
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``; null stands for what is not finite."""
    metrics = {name: _finite(value) for name, value in result.metrics.items() if name != "expert_load"}
    load = [[_finite(round(share, 4)) for share in layer] for layer in result.metrics["expert_load"]]
    weight = int(result.weight) if result.weight.is_integer() else result.weight
    return {
        "stage": settings.stage,
        "step": state.step,
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "tokens": state.tokens,
        "grad_norm": _finite(result.grad_norm),
        "lr": lr,
        counts: weight,
        "skipped": result.skipped,
        "tokens_per_second": round(tokens_per_second, 1),
        "mfu": round(tokens_per_second * settings.flops_per_token / settings.peak_flops_per_second, 4),
        **metrics,
        "expert_load": load,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
