"""The loss and the metrics on documents that no step trains on, measured while a model is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leyden.data.loader.held_out import HeldOutBatches
from leyden.parallel import RankGroup
from leyden.parallel.objective import Objective, Row, Sums, add_up, sums_of_row
from leyden.train.state import TrainState


@dataclass(frozen=True)
class HeldOut:
    """What is measured, and how often.

    Attributes:
        every_steps: after every so many steps of the run, and after the last of a stage.
        batches: of several data ranks, this one's shares; as many for each step as a training step has micro-batches.
        num_bytes: UTF-8 bytes that the labels of all ranks stand for; None: nothing is said of bytes.
    """

    every_steps: int
    batches: Sequence[Sequence[Row]]
    num_bytes: int | None = None

    @classmethod
    def share(cls, batches: HeldOutBatches, rank_group: RankGroup, *, every_steps: int, per_step: int) -> "HeldOut":
        """What this rank has of held-out documents.

        Args:
            batches: of all ranks, a multiple of ``per_step``.
            rank_group: the ranks.
            every_steps: as above.
            per_step: micro-batches of a training step.
        """
        own = [batches.share(number, *rank_group.share) for number in range(batches.num_batches)]
        parts = [own[first : first + per_step] for first in range(0, len(own), per_step)]
        return cls(every_steps, parts, batches.num_bytes)


def measure(state: TrainState, held_out: HeldOut, objective: Objective) -> dict[str, float]:
    """The mean loss and metrics of an objective; the state is left as it was. All ranks call this together.

    Returns:
        ``held_out_loss`` and ``held_out_NAME`` for each metric of the objective; for documents whose bytes are known
        also ``held_out_bits_per_byte``, the loss then being one in nats.
    """
    state.model.eval()
    names = ["loss", *objective.metrics]
    with torch.no_grad():
        total = add_up([sums for batches in held_out.batches for sums in _sums(state, batches, objective)])
        state.rank_group.at("the exchange of held-out sums", state.step)
        weight, *sums = state.rank_group.sum([total.weight, *(total.metrics[name] for name in names)])
    found = {f"held_out_{name}": float(x) / (float(weight) or math.nan) for name, x in zip(names, sums, strict=True)}
    if held_out.num_bytes is not None:
        found["held_out_bits_per_byte"] = float(sums[0]) / math.log(2) / held_out.num_bytes
    return found


def _sums(state: TrainState, batches: Sequence[Row], objective: Objective) -> list[Sums]:
    state.rank_group.at("the held-out documents", state.step)
    if state.pipeline is not None:
        return state.pipeline.evaluate(batches, objective)
    return [sums_of_row(objective, state.model, batch) for batch in batches]
