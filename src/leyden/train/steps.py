"""The steps of a stage, one after another: batches in, what each step did out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.parallel.objective import Objective
from leyden.train.batch_schedule import MicroBatches, one_batch
from leyden.train.learning_rate import LearningRate
from leyden.train.spikes import SpikeSettings, StepLimits
from leyden.train.state import Batches, TrainState
from leyden.train.step import StepResult, train_step

Callback = Callable[[TrainState, StepResult], None]


def no_mtp(step: int) -> float:
    """Modules for multi-token prediction are not trained."""
    return 0.0


class FitSettings(Config):
    """One stage of a run, as the loop sees it."""

    stage: str
    """Its name, for the metrics and the progress bar."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of this stage, all of them with the stated batch."""
    micro_batches: MicroBatches = one_batch
    """How many batches each optimizer step of the stage takes."""
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
    max_batch_factor: int = Field(default=1, ge=1)
    """The batch doubles where the critical batch allows it, to at most so many times the stated one. A step with k
    times as many batches stands for k of the stage's steps; 1: it never doubles."""
    noise_scale_steps: int = Field(default=0, ge=0)
    """The gradient noise scale is measured every so many steps of the run; 0: never."""
    spikes: SpikeSettings = SpikeSettings()
    """What a spike is, and what becomes of its step."""
    mtp_weight: Callable[[int], float] = no_mtp
    """Of the losses of modules for multi-token prediction, by the step of the stage."""
    how_to_resume: str
    """What the user is told to do after an interruption."""
    shows_progress: bool = True
    """Whether the loop shows a progress bar; False where its caller shows one of many runs."""


@dataclass(frozen=True)
class TakenStep:
    """One step that was taken.

    Attributes:
        result: what it did.
        lr: its learning rate.
        seconds: that it took, with those for its batches.
        before: where the batches stood before it.
        num_micro_batches: that it took.
        limits: of its loss and gradient norm.
    """

    result: StepResult
    lr: float
    seconds: float
    before: Mapping[str, Any]
    num_micro_batches: int
    limits: StepLimits

    @property
    def tokens_per_second(self) -> float:
        """Its rate."""
        return self.result.tokens / self.seconds


def steps(
    state: TrainState,
    batches: Batches,
    objective: Objective,
    learning_rate: LearningRate,
    settings: FitSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    after_step: Sequence[Callback] = (),
    limits: Callable[[], StepLimits] = StepLimits,
    batch_factor: Callable[[], int] = lambda: 1,
) -> Iterator[TakenStep]:
    """Take the steps that are left of a stage, each when it is asked for.

    Args:
        state, batches, objective, learning_rate, settings: as for :func:`fit`.
        stop: whether this rank was asked to stop, as for :func:`leyden.train.step.train_step`.
        after_step: as for :func:`fit`.
        limits: of the next step's loss and gradient norm.
        batch_factor: how many times as many micro-batches as the settings say the next step is to take; as many steps
            of the stage are behind it then, and its learning rate is that of the last of them.

    Raises:
        UserError: the batches end early.
    """
    every = settings.noise_scale_steps
    while state.stage_step < settings.total_steps:
        started = time.perf_counter()
        state.rank_group.at("the next batches", state.step + 1)
        stage_steps = min(batch_factor(), settings.total_steps - state.stage_step)
        lr = learning_rate.lr_at(state.stage_step + stage_steps - 1, settings.total_steps)
        before = batches.state_dict()
        count = settings.micro_batches(state.stage_step) * stage_steps
        micro_batches = _next_batches(batches, settings, state, count)
        limits_now = limits()
        measure_noise = bool(every) and (state.step + 1) % every == 0
        result = train_step(
            state,
            micro_batches,
            objective,
            lr=lr,
            clip_norm=settings.clip_norm,
            expert_bias_rate=learning_rate.expert_bias_rate_at(state.stage_step, settings.total_steps),
            stop=stop,
            limits=limits_now,
            measure_noise=measure_noise,
            stage_steps=stage_steps,
            mtp_weight=settings.mtp_weight(state.stage_step),
        )
        for hook in after_step:
            hook(state, result)
        yield TakenStep(result, lr, time.perf_counter() - started, before, len(micro_batches), limits_now)


def _next_batches(batches: Batches, settings: FitSettings, state: TrainState, count: int) -> list[Any]:
    try:
        return [next(batches) for _ in range(count)]
    except StopIteration:
        state.finish_saving()
        raise UserError(
            f"stage '{settings.stage}': the data ended before step {state.stage_step + 1} of "
            f"{settings.total_steps}; give more text, or fewer steps or tokens."
        ) from None
