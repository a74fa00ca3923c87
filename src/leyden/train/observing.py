"""What is measured of a model while it is trained, and the files of a run that it goes to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from leyden.parallel.objective import Objective
from leyden.train.held_out import HeldOut, measure
from leyden.train.metrics import MetricsLog, StepLog, finite
from leyden.train.sinks import Sink
from leyden.train.spikes import SPIKES, SpikeWatch
from leyden.train.state import TrainState

EVALUATIONS = "eval.jsonl"
"""In the folder of a run: what is measured of the model while it is trained, and at the end."""


class Watcher(Protocol):
    """Measures the model now and then while it is trained, and leaves it and all generators as they were."""

    def __call__(self, state: TrainState, last: bool, /) -> "Sequence[Finding]":
        """What there is to say after a step; ``last``: it is the last one of a stage.

        All ranks of the group call this together; what rank 0 returns is kept.
        """
        ...


@dataclass(frozen=True)
class Finding:
    """What was found beside the step itself.

    Attributes:
        record: of a watcher, a line of ``eval.jsonl``, which gets the stage and the step.
        note: the same for the progress bar, where a watcher's stays until it says something else.
    """

    record: Mapping[str, Any]
    note: str


StepFacts = Callable[[], Finding]
"""What else there is to say of the step that was just taken: a part of its line of metrics, and of the bar's note."""


def no_facts() -> Finding:
    """Nothing."""
    return Finding({}, "")


class RunFiles:
    """The files of a run that get a line now and then; of several ranks, the first writes them.

    Args:
        run_dir: the run's.
        state: as far as the run is; lines of later steps are removed.
        spikes: as many as it has counted stay.
        sinks: get the lines of metrics, too.

    Attributes:
        metrics: ``metrics.jsonl``.
        evaluations: ``eval.jsonl``.
        spikes: ``spikes.jsonl``, whose lines are counted: after a spike a run may go back to an earlier step.
    """

    def __init__(self, run_dir: Path, state: TrainState, spikes: SpikeWatch, *, sinks: Sequence[Sink] = ()) -> None:
        writes = state.rank_group.rank == 0
        self.directory = run_dir
        self.metrics = MetricsLog(run_dir / "metrics.jsonl", last=state.step, writes=writes, sinks=sinks)
        self.evaluations = StepLog(run_dir / EVALUATIONS, last=state.step, writes=writes)
        self.spikes = StepLog(run_dir / SPIKES, last=spikes.num_spikes, writes=writes, counts="number")

    def go_back(self, step: int) -> None:
        """Remove what is said of later steps, but for their spikes."""
        self.metrics.keep_until(step)
        self.evaluations.keep_until(step)

    def sync(self) -> None:
        """Make sure that all lines are on the disk, so that no checkpoint is ahead of them."""
        for file in (self.metrics, self.evaluations, self.spikes):
            file.sync()


class Observed:
    """What is measured of the model after steps, and what the bar says of it."""

    def __init__(
        self,
        state: TrainState,
        held_out: HeldOut | None,
        objective: Objective,
        watchers: Sequence[Watcher],
        files: RunFiles,
        stage: str,
    ) -> None:
        self._state, self._held_out, self._objective = state, held_out, objective
        self._watchers, self._files, self._stage = watchers, files, stage
        self._unseen = ""
        self._notes = [""] * len(watchers)

    @property
    def notes(self) -> str:
        """The newest of everything."""
        return "".join(f", {note}" for note in (self._unseen, *self._notes) if note)

    def held_out(self, last: bool) -> dict[str, float | None]:
        """The loss on held-out documents for the metrics of this step, where it is due."""
        state, held_out = self._state, self._held_out
        if held_out is None or not (state.step % held_out.every_steps == 0 or last):
            return {}
        found = measure(state, held_out, self._objective)
        named = {name: finite(value) for name, value in found.metrics.items()}
        self._unseen = f"unseen {found.metrics['held_out_loss']:.3f}"
        self._append({"task": "held_out", **named, **found.divided()})
        return named

    def watch(self, last: bool) -> None:
        """Ask the watchers."""
        for index, watcher in enumerate(self._watchers):
            findings = watcher(self._state, last)
            for finding in findings:
                self._append(finding.record)
            if findings:
                self._notes[index] = ", ".join(finding.note for finding in findings)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._files.evaluations.append({"stage": self._stage, "step": self._state.step, **record})
