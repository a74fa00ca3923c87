"""The loop around :func:`leyden.train.step.train_step`; it knows neither the objective nor what a batch is.

No decision here reads a clock or draws a random number, so that a run killed and resumed is the run never killed; and
all ranks of a group take the same decisions at the same step.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leyden.core.errors import Interrupted, UserError
from leyden.core.log import logger, progress
from leyden.parallel.objective import ROUTER_METRICS, Objective
from leyden.train.health import NOISE_METRICS, BatchFacts, RunHealth
from leyden.train.held_out import HeldOut
from leyden.train.learning_rate import LearningRate
from leyden.train.metrics import finite
from leyden.train.observing import Finding, Observed, RunFiles, StepFacts, Watcher, no_facts
from leyden.train.signals import StopRequest
from leyden.train.sinks import Sink
from leyden.train.state import Batches, TrainState
from leyden.train.step import StepResult
from leyden.train.steps import Callback, FitSettings, TakenStep, steps

_log = logger(__name__)


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
    watchers: Sequence[Watcher] = (),
    batch_facts: BatchFacts | None = None,
    step_facts: StepFacts = no_facts,
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
        watchers: asked after every step, as callbacks are; what they find goes to ``eval.jsonl``.
        batch_facts: what is to be noted of the batches of a spike.
        step_facts: what the batches have to say of each step.

    Raises:
        ValueError: a metric of the objective has the name of another.
        Interrupted: Ctrl-C or SIGTERM, to any rank; the step was finished and a checkpoint written.
        UserError: the batches end early, the disk fails, too many steps in a row are skipped, or training would go back
            to one checkpoint too often.
    """
    _check_names(objective)
    health = RunHealth.of(state, settings.spikes)
    state.enter_stage(stage, batches)
    health.enter_stage(stage)
    run_dir.mkdir(parents=True, exist_ok=True)
    files = RunFiles(run_dir, state, health.spikes, sinks=sinks)
    observed = Observed(state, held_out, objective, watchers, files, settings.stage)
    with StopRequest() as stop, _shown(state, settings) as show:
        taken = steps(
            state,
            batches,
            objective,
            learning_rate,
            settings,
            stop=lambda: stop.made,
            after_step=after_step,
            limits=health.spikes.limits,
            batch_factor=lambda: health.batch_factor(settings),
        )
        for step in taken:
            result, last = step.result, state.stage_step == settings.total_steps
            state.check_saving()
            record = _record(state, step, settings, objective.counts) | health.noise_of(state, result, settings)
            facts = step_facts()
            files.metrics.append(record | dict(facts.record) | observed.held_out(last))
            for callback in callbacks:
                callback(state, result)
            observed.watch(last)
            show(_note(step, facts, observed))
            _stop_if_skipped_too_often(state, result, settings, objective.counts)
            went_back = health.check(state, step, files, settings.stage, batch_facts)
            if not went_back:
                _save_if_due(state, files, settings, stop, asked=result.stop, last=last)
    health.tell_batch(settings)


@contextmanager
def _shown(state: TrainState, settings: FitSettings) -> Iterator[Callable[[str], None]]:
    """A bar of the stage's steps: each call moves it to where ``state`` is, with a note. Nothing where none is due."""
    if not settings.shows_progress:
        yield lambda note: None
        return
    with progress(f"training: {settings.stage}", settings.total_steps, "steps") as bar:
        shown_steps = state.stage_step
        bar.advance(shown_steps)

        def show(note: str) -> None:
            nonlocal shown_steps
            bar.advance(state.stage_step - shown_steps, note)
            shown_steps = state.stage_step

        yield show


def _note(step: TakenStep, facts: Finding, observed: Observed) -> str:
    """What the bar says behind a step."""
    said = f", {facts.note}" if facts.note else ""
    return f"loss {step.result.loss:.3f}{said}{observed.notes}, {step.tokens_per_second:.0f} tokens/s"


def _save_if_due(
    state: TrainState, files: RunFiles, settings: FitSettings, stop: StopRequest, *, asked: bool, last: bool
) -> None:
    """Write a checkpoint where one is due; ``asked``: a rank was asked to stop by the time of the step's exchange.

    Raises:
        Interrupted: a rank was asked to stop.
    """
    rank_group = state.rank_group
    # What a rank was asked since the sums were exchanged the others do not know yet; one alone has no others.
    stopping = asked or (rank_group.alone and stop.made)
    if not (stopping or last or state.step % settings.checkpoint_steps == 0):
        return
    rank_group.at("the checkpoint", state.step)
    files.sync()
    state.save(files.directory, keep=settings.keep_checkpoints)
    stopping = rank_group.any(stop.made)
    if stopping or last:
        state.finish_saving()
    if stopping:
        raise Interrupted(f"Stopped after step {state.step}; everything is saved. {settings.how_to_resume}")


def _stop_if_skipped_too_often(state: TrainState, result: StepResult, settings: FitSettings, counts: str) -> None:
    skipped = state.skipped_in_a_row
    if not skipped:
        return
    why = "the loss or its gradient is not finite"
    if result.spiked:
        why = "the loss or the gradient norm is far above those before (train.spikes.action is 'skip')"
    elif not result.weight:
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
    "max_violation",
    "loss",
    "aux_loss",
    *NOISE_METRICS,
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


def _record(state: TrainState, step: TakenStep, settings: FitSettings, counts: str) -> dict[str, Any]:
    """One line of ``metrics.jsonl``; null stands for what is not finite."""
    result, rate = step.result, step.tokens_per_second
    metrics = {name: finite(value) for name, value in result.metrics.items() if name != "expert_load"}
    load = [[finite(round(share, 4)) for share in layer] for layer in result.metrics["expert_load"]]
    weight = int(result.weight) if result.weight.is_integer() else result.weight
    return {
        "stage": settings.stage,
        "step": state.step,
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "tokens": state.tokens,
        "grad_norm": finite(result.grad_norm),
        "lr": step.lr,
        counts: weight,
        "skipped": result.skipped,
        "tokens_per_second": round(rate, 1),
        "mfu": round(rate * settings.flops_per_token / settings.peak_flops_per_second, 4),
        **metrics,
        "expert_load": load,
        "max_violation": _max_violation(result.metrics["expert_load"]),
    }


def _max_violation(load: Sequence[Sequence[float]]) -> float | None:
    """By how much the busiest expert exceeds an even split, as a share of it, on average over layers
    (arXiv 2408.15664, section 4.1); 0 without experts."""
    each = [len(layer) * max(layer) - 1 for layer in load]
    return finite(round(sum(each) / len(each), 4)) if each else 0.0
