"""The loss and the metrics on documents that no step trains on, measured while a model is trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from leyden.core.transfers import sent
from leyden.data.loader.held_out import HeldOutPart, class_names
from leyden.model import Features
from leyden.model.losses import TokenLossModel
from leyden.parallel import RankGroup
from leyden.parallel.objective import Objective, Row, Sums, add_up, sums_of_row
from leyden.train.metrics import finite
from leyden.train.objective import document_sums
from leyden.train.state import TrainState


class MeasuredBatches(Protocol):
    """Held-out documents as batches, of which there are ``num_batches``.

    Attributes:
        num_bytes: UTF-8 bytes that the labels stand for; None where the loss is not the sum of their nats.
        parts: what the documents are divided into; ``per_document["part"]`` says which of them each segment is of.
    """

    num_batches: int
    num_bytes: int | None
    parts: Sequence[HeldOutPart]

    def share(self, number: int, rank: int, ranks: int, /) -> Row:
        """What one of several data ranks has of a batch."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """What is measured, and how often.

    Attributes:
        every_steps: after every so many steps of the run, and after the last of a stage.
        batches: of several data ranks, this one's shares; as many for each step as a training step has micro-batches.
        num_bytes: UTF-8 bytes that the labels of all ranks stand for; None: nothing is said of bytes.
        parts: what the documents are divided into, over all ranks; of several, the loss of each is measured too.
        length_bounds: of the classes of lengths that parts are of.
    """

    every_steps: int
    batches: Sequence[Sequence[Row]]
    num_bytes: int | None = None
    parts: Sequence[HeldOutPart] = ()
    length_bounds: Sequence[int] = ()

    @classmethod
    def share(
        cls,
        batches: MeasuredBatches,
        rank_group: RankGroup,
        *,
        every_steps: int,
        per_step: int,
        length_bounds: Sequence[int] = (),
    ) -> "HeldOut":
        """What this rank has of held-out documents.

        Args:
            batches: of all ranks, a multiple of ``per_step``.
            rank_group: the ranks.
            every_steps: as above.
            per_step: micro-batches of a training step.
            length_bounds: those of ``batches``.
        """
        own = [batches.share(number, *rank_group.share) for number in range(batches.num_batches)]
        steps = [own[first : first + per_step] for first in range(0, len(own), per_step)]
        return cls(every_steps, steps, batches.num_bytes, batches.parts, length_bounds)


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` found.

    Attributes:
        metrics: ``held_out_loss`` and ``held_out_NAME`` for each metric of the objective; for documents whose bytes are
            known also ``held_out_bits_per_byte``, the loss then being one in nats.
        nats: the summed negative log-likelihood of each part; empty where there is one part.
        held_out: what was measured.
    """

    metrics: Mapping[str, float]
    nats: Sequence[float]
    held_out: HeldOut = field(repr=False)

    def divided(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """``loss``, ``bits_per_byte`` and ``labels`` by source (``sources``) and by length in tokens (``lengths``).

        A division that would have one entry is left out.
        """
        pairs = list(zip(self.held_out.parts, self.nats, strict=False))
        names = class_names(self.held_out.length_bounds)
        sources = sorted({part.source for part, _ in pairs})
        classes = sorted({part.length_class for part, _ in pairs})
        found: dict[str, Any] = {}
        if len(sources) > 1:
            found["sources"] = {one: _figures((p, n) for p, n in pairs if p.source == one) for one in sources}
        if len(names) > 1:
            found["lengths"] = {
                names[one]: _figures((p, n) for p, n in pairs if p.length_class == one) for one in classes
            }
        return found


def measure(state: TrainState, held_out: HeldOut, objective: Objective) -> Measured:
    """The mean loss and metrics of an objective; the state is left as it was. All ranks call this together."""
    state.model.eval()
    names = ["loss", *objective.metrics]
    divided = _ByPart(objective, len(held_out.parts)) if len(held_out.parts) > 1 else None
    asked = divided or objective
    with torch.no_grad():
        total = add_up([sums for batches in held_out.batches for sums in _sums(state, batches, asked)])
        state.rank_group.at("the exchange of held-out sums", state.step)
        of_parts = [] if divided is None else divided.parts
        weight, *sums = state.rank_group.sum([total.weight, *(total.metrics[name] for name in (*names, *of_parts))])
    values = [float(x) for x in sums]
    means = zip(names, values, strict=False)
    found = {f"held_out_{name}": value / (float(weight) or math.nan) for name, value in means}
    if held_out.num_bytes is not None:
        found["held_out_bits_per_byte"] = values[0] / math.log(2) / held_out.num_bytes
    return Measured(found, values[len(names) :], held_out)


class _ByPart:
    """An objective that also sums the negative log-likelihood of each part's labels.

    The output projection is computed a second time for that.
    """

    def __init__(self, objective: Objective, num_parts: int) -> None:
        self._objective = objective
        self.counts = objective.counts
        self.parts = [f"part {number}" for number in range(num_parts)]
        self.metrics = [*objective.metrics, *self.parts]

    def sums(self, model: TokenLossModel, features: Features, batch: Any, /) -> Sums:
        """See :class:`leyden.parallel.objective.Objective`."""
        own = self._objective.sums(model, features, batch)
        nll, _ = model.token_nll(features.hidden, sent(batch.labels, features.hidden.device))
        nats = model.ranks.once(document_sums(model, nll, batch))
        of_part = sent(batch.per_document["part"], nats.device)
        by_part = nats.new_zeros(len(self.parts)).index_add(0, of_part, nats)
        return Sums(own.loss, own.weight, {**own.metrics, **dict(zip(self.parts, by_part, strict=True))})


def _figures(pairs: Iterable[tuple[HeldOutPart, float]]) -> dict[str, float | None]:
    """Of some parts together, each with its nats."""
    labels = num_bytes = 0
    nats = 0.0
    for part, of_part in pairs:
        labels, num_bytes, nats = labels + part.num_labels, num_bytes + part.num_bytes, nats + of_part
    bits = nats / math.log(2) / num_bytes if num_bytes else math.nan
    return {"loss": finite(nats / labels), "bits_per_byte": finite(bits), "labels": labels}


def _sums(state: TrainState, batches: Sequence[Row], objective: Objective) -> list[Sums]:
    state.rank_group.at("the held-out documents", state.step)
    if state.pipeline is not None:
        return state.pipeline.evaluate(batches, objective)
    return [sums_of_row(objective, state.model, batch) for batch in batches]
