"""What a run knows of itself beside its state: the noise of its gradient, and its spikes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leyden.core.errors import UserError
from leyden.core.log import logger, say
from leyden.train.critical_batch import CriticalBatch
from leyden.train.metrics import finite
from leyden.train.noise_scale import NoiseScale
from leyden.train.observing import RunFiles
from leyden.train.spikes import SpikeSettings, SpikeWatch
from leyden.train.state import TrainState
from leyden.train.step import StepResult
from leyden.train.steps import FitSettings, TakenStep

_log = logger(__name__)

NOISE_METRICS = (
    "noise_scale",
    "noise_loss",
    "gradient_variance",
    "gradient_square",
    "critical_batch",
    "critical_batch_low",
    "batch_factor",
)
"""What a line of metrics has where the noise of the gradient was measured."""

BatchFacts = Callable[[Mapping[str, Any], int], Mapping[str, Any]]
"""What is to be noted of the micro-batches of a step, as JSON values: from where the batches stood before it, and how
many there were. It is called on the rank that writes."""


@dataclass(frozen=True)
class RunHealth:
    """Saved with every checkpoint, and the same on all ranks.

    Attributes:
        noise: of the gradient.
        spikes: of the loss and of the gradient norm.
        critical_batch: what the noise says of the batch.
    """

    noise: NoiseScale
    spikes: SpikeWatch
    critical_batch: CriticalBatch

    @classmethod
    def of(cls, state: TrainState, spikes: SpikeSettings) -> "RunHealth":
        """Of the run ``state``, as it was left by the stage before, or by the checkpoint that was resumed."""
        return cls(
            state.keep("noise_scale", NoiseScale),
            state.keep("spikes", lambda: SpikeWatch(spikes)),
            state.keep("critical_batch", CriticalBatch),
        )

    def enter_stage(self, stage: int) -> None:
        """Forget what holds of another stage alone."""
        self.spikes.enter_stage(stage)
        self.critical_batch.enter_stage(stage)

    def batch_factor(self, settings: FitSettings) -> int:
        """How many times the stated batch the next step has."""
        return min(self.critical_batch.factor, settings.max_batch_factor)

    def noise_of(self, state: TrainState, result: StepResult, settings: FitSettings) -> dict[str, float | None]:
        """What a line of metrics says of the noise; nothing where the step did not measure it. All ranks call this.

        From it the batch of the next steps follows, where it is to: it is the same on all ranks.
        """
        if result.noise is None or result.skipped:
            return {}
        noise, critical = self.noise, self.critical_batch
        noise.add(result.noise, result.loss)
        may_double = critical.see(result.noise, result.loss, result.weight)
        now, least = critical.now or (None, None)
        record = {**noise.record(result.noise), "critical_batch": now, "critical_batch_low": least}
        if 2 * self.batch_factor(settings) <= settings.max_batch_factor and state.rank_group.any(may_double):
            critical.double()
            say(f"step {state.step}: {critical}; the batch doubles from the next step on")
        return record | {"batch_factor": self.batch_factor(settings)}

    def tell_batch(self, settings: FitSettings) -> None:
        """Say at the end of a stage what the critical batch has made of its batch, if that was its to decide."""
        if settings.max_batch_factor > 1:
            times = self.batch_factor(settings)
            became = f"the batch is {times} times the first" if times > 1 else "the batch did not grow"
            say(f"stage {settings.stage}: {became}; {self.critical_batch}")

    def check(
        self, state: TrainState, step: TakenStep, files: RunFiles, stage: str, batch_facts: BatchFacts | None
    ) -> bool:
        """Take in a step; where it was a spike, log it, and go back if that is to be done. All ranks call this.

        Returns:
            Whether the state is that of an earlier checkpoint now.

        Raises:
            UserError: training went back to that checkpoint too often.
        """
        result, at = step.result, state.step
        self.spikes.see(result.loss, result.grad_norm)
        if not result.spiked:
            return False
        self.spikes.num_spikes += 1
        record = {
            "number": self.spikes.num_spikes,
            "stage": stage,
            "step": at,
            "loss": finite(result.loss),
            "loss_limit": step.limits.loss,
            "grad_norm": finite(result.grad_norm),
            "grad_norm_limit": step.limits.grad_norm,
        }
        action: dict[str, Any] = {"action": self.spikes.settings.action}
        rewinds = action["action"] == "rewind"
        if rewinds and state.rewind(files.directory):
            action["to_step"] = state.step
        elif rewinds:
            rewinds, action = False, {"action": "log", "why": "there is no checkpoint to go back to yet"}
        facts = batch_facts(step.before, step.num_micro_batches) if batch_facts and state.rank_group.rank == 0 else {}
        files.spikes.append({**record, **action, **facts})
        if rewinds:
            files.go_back(state.step)
        _log.warning("%s", _told(record, action, facts, files))
        if rewinds and not self.spikes.may_rewind(state.step):
            raise UserError(
                f"stage '{stage}': training has gone back to step {state.step} {self.spikes.settings.max_rewinds} "
                f"times, each time for a spike, the last at step {at}; other batches do not help. Lower the learning "
                "rate from there on (leyden run --from), or raise train.spikes.threshold or max_rewinds."
            )
        return rewinds


def _told(record: Mapping[str, Any], action: Mapping[str, Any], facts: Mapping[str, Any], files: RunFiles) -> str:
    """A spike in a line."""
    repeats = ""
    if facts.get("repeated_share") is not None:
        repeats = f"; {facts['repeated_share']:.1%} of its tokens are in long runs of one n-gram"
        repeats += f" (usually {facts['usual_repeated_share']:.1%})"
    done = {"log": "", "skip": "; its update is left out"}.get(action["action"])
    if done is None:
        done = f"; going on from step {action['to_step']}, without the batches since then"
    norm = f"gradient norm {record['grad_norm']:.3g} (limit {record['grad_norm_limit']:.3g})"
    return (
        f"step {record['step']}: a spike, loss {record['loss']:.3f} (limit {record['loss_limit']:.3f}), {norm}"
        f"{repeats}{done}; {files.directory}/spikes.jsonl has its documents"
    )
