"""The log-probabilities of all answers under the reference model, computed once and kept on disk.

The reference is the model that a stage begins with. It is asked before the first step, so no second model is held: the
answers of the data go through it once, in evaluation and without gradients, and one number of each is kept. What is on
disk says of which model and of which answers it is, and how far it has come.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leyden.align.preference.batches import ANSWER
from leyden.checkpoint.coordinator import coordinator_of
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.core.log import Bar, progress
from leyden.core.transfers import sent
from leyden.data.arrays import write_array
from leyden.data.loader.once import OnceBatches
from leyden.data.marks import read_mark, write_mark
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.parallel.objective import Sums, sums_of_row
from leyden.train import TrainState, document_sums

_VALUES, _MARK = "log_probabilities.npy", "reference.json"

_PARTS = 32
"""A pass is written down so often: what a kill costs of it is a part."""


@dataclass(frozen=True)
class ReferenceOf:
    """What log-probabilities are of.

    Attributes:
        model: :meth:`leyden.train.TrainState.model_hash` of the reference.
        answers: a hash of the answers' tokens.
    """

    model: str
    answers: str


@dataclass(frozen=True, eq=False)
class Reference:
    """Log-probabilities, all or as many as there are yet.

    Attributes:
        of: what they are of.
        packing: a hash of how the answers were put into batches.
        values: [answers] float64, in nats; 0 for those that no batch has had yet.
        done: batches that have gone through the model.
        total: how many there are.
    """

    of: ReferenceOf
    packing: str
    values: np.ndarray
    done: int
    total: int

    def write(self, folder: Path) -> None:
        """Write it to ``folder``, whole or not at all.

        Raises:
            UserError: the disk is full.
        """
        with atomic_directory(folder) as part:
            write_array(part / _VALUES, self.values)
            facts = {"of": asdict(self.of), "packing": self.packing, "done": self.done, "total": self.total}
            write_mark(part / _MARK, [part / _VALUES], facts)

    @classmethod
    def read(cls, folder: Path) -> "Reference | None":
        """What :meth:`write` left in ``folder``; None where there is nothing, or it is not what was written."""
        mark = read_mark(folder / _MARK)
        if mark is None or mark.fault() is not None:
            return None
        facts, values = mark.facts, np.load(folder / _VALUES, allow_pickle=False)
        return cls(ReferenceOf(**facts["of"]), facts["packing"], values, facts["done"], facts["total"])

    @property
    def complete(self) -> bool:
        """Whether all are there."""
        return self.done == self.total


class _Asked:
    """An objective that keeps the log-probability of each answer that this rank counts, and minimises nothing."""

    counts: str = "answers"
    metrics: Sequence[str] = ()

    def __init__(self, num_answers: int) -> None:
        self.values = torch.zeros(num_answers, dtype=torch.float64)

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        nll, _ = model.token_nll(features.hidden, sent(batch.labels, features.hidden.device))
        # Every rank of the row has them all.
        log_probs = model.ranks.once(-document_sums(model, nll, batch))
        is_answer = batch.groups >= 0
        self.values.index_add_(0, batch.per_document[ANSWER][is_answer], log_probs.detach().cpu().double()[is_answer])
        return Sums(log_probs.sum() * 0, torch.zeros((), device=log_probs.device))


def compute_reference(
    state: TrainState,
    parts: Sequence[OnceBatches],
    num_answers: int,
    folder: Path,
    of: ReferenceOf,
    *,
    per_step: int = 1,
    title: str = "reference",
) -> Reference:
    """Ask the model of ``state`` for the log-probability of every answer, or go on where that was interrupted.

    Args:
        state: is left as it was. All ranks of its group call this, and each gets all log-probabilities.
        parts: the answers in batches, whose numbers are multiples of ``per_step``.
        num_answers: of the files, those that no batch has included.
        folder: keeps what is done; of several ranks, the first writes it.
        of: what they are of; what ``folder`` holds of something else is replaced.
        per_step: micro-batches that go through a pipeline at once.
        title: of the progress bar.

    Raises:
        UserError: a log-probability is not finite, or the disk is full.
    """
    batches = [(part, number) for part in parts for number in range(part.num_batches)]
    packing = hashlib.sha256(" ".join(part.fingerprint for part in parts).encode()).hexdigest()
    found = _so_far(state, folder, Reference(of, packing, np.zeros(num_answers), 0, len(batches)))
    at_once = -(-len(batches) // (_PARTS * per_step)) * per_step
    with progress(title, found.total, "batches") as bar:
        bar.advance(found.done)
        while not found.complete:
            chosen = batches[found.done : found.done + at_once]
            values = found.values + _ask(state, chosen, num_answers, per_step, bar)
            found = replace(found, values=values, done=found.done + len(chosen))
            if state.rank_group.rank == 0:
                found.write(folder)
    return found


def _so_far(state: TrainState, folder: Path, fresh: Reference) -> Reference:
    """What ``folder`` holds of it; ``fresh`` where that is nothing. The same on all ranks."""

    def read() -> Reference:
        found = Reference.read(folder)
        if found is None or found.of != fresh.of:
            return fresh
        same_batches = (found.packing, found.total) == (fresh.packing, fresh.total)
        return found if found.complete or same_batches else fresh

    done = coordinator_of(state.rank_group.mesh).on_rank_0(lambda: read().done)
    # The first rank writes only after the next exchange, which takes all of them.
    found = read() if done else fresh
    if found.done != done:
        raise UserError(
            f"{folder} is not the same for this rank as for the first; the directory of a run must be the same one for "
            "all ranks, on a file system that all machines share."
        )
    return found


def _ask(
    state: TrainState, batches: Sequence[tuple[OnceBatches, int]], num_answers: int, per_step: int, bar: Bar
) -> np.ndarray:
    """[answers] float64, of the answers in some batches, 0 of the others; the same on all ranks."""
    asked, share = _Asked(num_answers), state.rank_group.share
    state.model.eval()
    with torch.no_grad():
        for start in range(0, len(batches), per_step):
            rows = [part.share(number, *share) for part, number in batches[start : start + per_step]]
            state.rank_group.at("the reference log-probabilities", state.step)
            if state.pipeline is not None:
                state.pipeline.evaluate(rows, asked)
            else:
                for row in rows:
                    sums_of_row(asked, state.model, row)
            bar.advance(len(rows))
    state.rank_group.at("the exchange of reference log-probabilities", state.step)
    (total,) = state.rank_group.sum([asked.values])
    lost = int((~total.isfinite()).sum())
    if lost:
        raise UserError(
            f"{lost:,} answers have no finite log-probability under the model that the stage begins with, which is the "
            "reference of its loss; look at that model, whose weights are too large or not finite."
        )
    return total.cpu().numpy()
