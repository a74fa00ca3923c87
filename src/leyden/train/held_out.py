"""The loss on documents that no step trains on, measured while a model is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leyden.data.loader.held_out import HeldOutBatches
from leyden.parallel import Team
from leyden.train.objective import Objective
from leyden.train.state import TrainState


@dataclass(frozen=True)
class HeldOut:
    """What is measured, and how often.

    Attributes:
        every_steps: after every so many steps of the run, and after the last of a stage.
        batches: of several data ranks, this one's shares; as many for each step as a training step has micro-batches.
        num_bytes: UTF-8 bytes that the labels of all ranks stand for.
    """

    every_steps: int
    batches: Sequence[Sequence[Any]]
    num_bytes: int

    @classmethod
    def share(cls, batches: HeldOutBatches, team: Team, *, every_steps: int, per_step: int) -> "HeldOut":
        """What this rank has of held-out documents.

        Args:
            batches: of all ranks, a multiple of ``per_step``.
            team: the ranks.
            every_steps: as above.
            per_step: micro-batches of a training step.
        """
        own = [batches.share(number, *team.share) for number in range(batches.num_batches)]
        parts = [own[first : first + per_step] for first in range(0, len(own), per_step)]
        return cls(every_steps, parts, batches.num_bytes)


def measure(state: TrainState, held_out: HeldOut, objective: Objective) -> dict[str, float]:
    """The mean loss of a label, and bits per byte; the state is left as it was. All ranks call this together.

    Returns:
        ``held_out_loss`` in nats a token, and ``held_out_bits_per_byte``.
    """
    state.model.eval()
    with torch.no_grad():
        parts = [sums for batches in held_out.batches for sums in _sums(state, batches, objective)]
        totals = [torch.stack([part.nll for part in parts]).sum(0), torch.stack([p.num_labels for p in parts]).sum(0)]
        state.team.at("the exchange of held-out sums", state.step)
        nll, num_labels = state.team.sum(totals)
    nats = float(nll)
    return {
        "held_out_loss": nats / max(1, int(num_labels)),
        "held_out_bits_per_byte": nats / math.log(2) / held_out.num_bytes,
    }


def _sums(state: TrainState, batches: Sequence[Any], objective: Objective) -> list[Any]:
    state.team.at("the held-out documents", state.step)
    if state.pipeline is not None:
        return state.pipeline.evaluate(batches, objective)
    return [objective(state.model, batch) for batch in batches]
