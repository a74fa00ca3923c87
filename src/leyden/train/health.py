"""What a run knows of itself beside its state: the noise of its gradient, and its spikes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.train.critical_batch import CriticalBatch
from leyden.train.metrics import finite
from leyden.train.noise_scale import NoiseScale
from leyden.train.observing import RunFiles
from leyden.train.spikes import SpikeSettings, SpikeWatch
from leyden.train.state import TrainState
from leyden.train.step import StepResult
from leyden.train.steps import TakenStep

_log = logger(__name__)

NOISE_METRICS = ("noise_scale", "noise_loss", "gradient_variance", "gradient_square", "critical_batch")
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

    def noise_of(self, result: StepResult, *, doubles: bool) -> dict[str, float | None]:
        """What a line of metrics says of the noise; nothing where the step did not measure it.

        ``doubles``: the batch is doubled where the critical batch is twice as large.
        """
        if result.noise is None or result.skipped:
            return {}
        noise = self.noise
        noise.add(result.noise, result.loss)
        critical = None
        if noise.value is not None and noise.loss is not None:
            critical = self.critical_batch.see(noise.loss, noise.value, result.weight, doubles=doubles)
        return {**noise.record(result.noise), "critical_batch": critical}

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
