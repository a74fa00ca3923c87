"""The reference of a stage on pairs: the model that the stage begins with, as one log-probability of every answer.

They are computed when the stage begins, into the folder of its run. A run that is gone on with in the middle of the
stage has trained its model since; so what every checkpoint notes of the reference must be what lies there.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from leyden.align.chats.fitting import TooLong
from leyden.align.preference.batches import FittingPairs, fit_pairs, paired
from leyden.align.preference.reference import Reference, ReferenceOf, compute_reference
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory, link_or_copy
from leyden.core.log import say
from leyden.data.groups import folder_of
from leyden.data.loader.once import OnceBatches
from leyden.recipes.prepare import Prepared
from leyden.recipes.schema import Recipe, TrainingStage
from leyden.train import TrainState

REFERENCES = "reference"
"""In the folder of a run: of each stage whose loss compares with the model that it began with, what is kept of that."""


class _Noted:
    """What the references of a run are of, by stage; saved with every checkpoint."""

    def __init__(self) -> None:
        self.of: dict[str, ReferenceOf] = {}

    def state_dict(self) -> dict[str, Any]:
        return {stage: asdict(of) for stage, of in self.of.items()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.of = {stage: ReferenceOf(**of) for stage, of in state.items()}


def has_reference(stage: TrainingStage) -> bool:
    """Whether the loss of a stage compares with a reference model."""
    return stage.objective == "preference" and stage.of_pairs.needs_reference


def reference_place(directory: Path, stage: TrainingStage) -> Path:
    """Where a run keeps what a stage compares with."""
    return directory / REFERENCES / folder_of(stage.name)


def take_reference(source: Path, directory: Path, stage: TrainingStage) -> None:
    """Give the run ``directory`` what the run ``source`` keeps of a stage that both are in."""
    kept = reference_place(source, stage)
    if kept.exists():
        with atomic_directory(reference_place(directory, stage)) as part:
            shutil.copytree(kept, part, copy_function=link_or_copy, dirs_exist_ok=True)


class StageReference:
    """The reference log-probabilities of stage ``index``.

    Args:
        recipe: whose stage it is.
        index: of the stage, whose loss has a reference.
        prepared: the tokens.
        directory: of the run; None: nothing is trained for good, and all are zero.
    """

    def __init__(self, recipe: Recipe, index: int, prepared: Prepared, directory: Path | None) -> None:
        self._index, self._stage = index, recipe.stage[index]
        self._data = prepared.of(self._stage)
        self._too_long: TooLong = (self._stage.data or recipe.data).too_long
        self._folder = None if directory is None else reference_place(directory, self._stage)
        self._values: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """[answers of the files] float64; zeros until the stage has begun."""
        return np.zeros(self._num_answers()) if self._values is None else self._values

    def begin(self, state: TrainState) -> None:
        """Compute what is missing, or read what the stage began with; all ranks call this together.

        Raises:
            UserError: the stage is under way, and the folder does not hold what it began with.
        """
        stage, is_in_stage = self._stage, state.stage == self._index
        if self._folder is None or (is_in_stage and state.stage_step == stage.total_steps):
            return
        noted = state.keep("references", _Noted)
        pairs = self._pairs()
        answers = hashlib.sha256(" ".join(part.shards.fingerprint for part in pairs).encode()).hexdigest()
        if is_in_stage and state.stage_step:
            self._values = self._begun_with(noted.of.get(stage.name), answers)
            return
        of = ReferenceOf(state.model_hash(), answers)
        before = Reference.read(self._folder)
        if before is not None and before.of != of:
            what = "another model" if before.of.answers == of.answers else "other answers"
            say(f"stage '{stage.name}': its reference log-probabilities were of {what}, and are computed anew")
        per_step = stage.batch_schedule.fewest_micro_batches
        parts = [
            OnceBatches(paired(part), seq_len=stage.seq_len, batch_tokens=stage.micro_batch, multiple=per_step)
            for part in pairs
        ]
        num_answers, title = self._num_answers(), f"reference: {stage.name}"
        found = compute_reference(state, parts, num_answers, self._folder, of, per_step=per_step, title=title)
        self._values, noted.of[stage.name] = found.values, of
        say(f"stage '{stage.name}': {self._ranked(pairs)}")

    def _begun_with(self, noted: ReferenceOf | None, answers: str) -> np.ndarray:
        assert self._folder is not None, "a run has a directory"
        found = Reference.read(self._folder)
        why = None
        if noted is None or found is None or not found.complete:
            why = "they are missing, or damaged"
        elif found.of != noted:
            why = "they are of another model"
        elif found.of.answers != answers:
            why = "the pairs are others now"
        if found is None or why is not None:
            raise UserError(
                f"stage '{self._stage.name}': {self._folder} does not hold the reference log-probabilities that the "
                f"stage began with: {why}. They cannot be computed again, since the model was trained meanwhile. Bring "
                "back the folder and the data from a copy; or begin the stage anew, from a checkpoint before it "
                "(leyden run RECIPE --from DIR@STEP --dir NEW)."
            )
        return found.values

    def _pairs(self) -> list[FittingPairs]:
        """Those that are trained on, and those that are held out, if any."""
        shards = [*self._data.shards.values(), *filter(None, [self._data.held_out_rows])]
        return [fit_pairs(part, self._stage.seq_len, self._too_long) for part in shards]

    def _num_answers(self) -> int:
        """Of the files: every one is trained on or held out."""
        shards = [*self._data.shards.values(), *filter(None, [self._data.held_out_rows])]
        return max(int(part.rows[-1]) for part in shards) + 1

    def _ranked(self, pairs: list[FittingPairs]) -> str:
        """How often the reference finds the chosen answer likelier, in words: what training begins with."""
        shares = []
        for part in pairs:
            values = self.values[part.shards.rows] / (part.answer_tokens if self._stage.of_pairs.by_length else 1)
            wins = (values[::2] > values[1::2]).mean() + (values[::2] == values[1::2]).mean() / 2
            shares.append(f"{wins:.1%} of {len(values) // 2:,} pairs")
        of_held_out = f", and in {shares[1]} that are held out" if len(shares) > 1 else ""
        by = "likelier by token" if self._stage.of_pairs.by_length else "likelier"
        return f"the reference model finds the chosen answer {by} in {shares[0]}{of_held_out}"
