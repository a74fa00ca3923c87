"""One rank of a plan: where it stands, and how much of a step is its."""

import functools
from collections import Counter
from dataclasses import dataclass

import torch

from leyden.model import LayerKind, ModelConfig
from leyden.model.lora import LoraConfig
from leyden.parallel.plan import Plan
from leyden.parallel.planner.sizes import Module, layer_weights, nextn_weights, outer_weights, stages
from leyden.parallel.planner.step import StepShape
from leyden.parallel.sequence.layout import balanced


@dataclass(frozen=True)
class MomentBytes:
    """What the optimizer remembers of one weight.

    Attributes:
        matrix: of a matrix of a layer.
        other: of any other weight.
    """

    matrix: int
    other: int


@dataclass(frozen=True)
class Rank:
    """Where a rank stands and what it computes with.

    Attributes:
        model: the shape.
        plan: the sizes of the axes.
        step: the tokens of a step.
        at: the rank's coordinates.
        dtype: of the computation.
        documents: [N + 1], the bounds of the documents of each row, if they are known: they decide which tokens a
            context rank has in softmax layers.
        lora: the adapters that are trained of a frozen model; None: all weights are trained.
        moments: what the optimizer remembers; None: two numbers a weight in :attr:`wide`.
    """

    model: ModelConfig
    plan: Plan
    step: StepShape
    at: dict[str, int]
    dtype: torch.dtype = torch.bfloat16
    documents: tuple[int, ...] | None = None
    lora: LoraConfig | None = None
    moments: MomentBytes | None = None

    @functools.cached_property
    def wide(self) -> torch.dtype:
        """Of sums and states: float32, or float64 for a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def reduce_dtype(self) -> torch.dtype:
        """Of gradients on the wire."""
        name = self.plan.settings.reduce_dtype
        return self.dtype if name == "auto" else getattr(torch, name)

    @functools.cached_property
    def row(self) -> int:
        """Tokens of a row."""
        return self.step.row_tokens(self.plan)

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """[cp + 1], of the context ranks' parts of a row (:meth:`leyden.parallel.ranks.StageRanks.part`)."""
        tp, cp = self.plan.tp, self.plan.cp
        return tuple(self.row // tp * index // cp * tp for index in range(cp + 1))

    @functools.cached_property
    def tokens(self) -> int:
        """Of this context rank's part: what attention meets."""
        return self.bounds[self.at["cp"] + 1] - self.bounds[self.at["cp"]]

    @functools.cached_property
    def own(self) -> int:
        """Of those, this tensor rank's: what norms, routers and experts meet."""
        return self.tokens // self.plan.tp

    @property
    def mean_own(self) -> float:
        """Over the ranks of the stage."""
        return self.row / (self.plan.cp * self.plan.tp)

    @functools.cached_property
    def ring(self) -> list[int]:
        """Tokens of every context rank in softmax layers; even where the documents are not known."""
        cp = self.plan.cp
        if self.documents is None:
            return [self.row * (index + 1) // cp - self.row * index // cp for index in range(cp)]
        return balanced(cp, self.documents).sizes

    @functools.cached_property
    def stages(self) -> list[tuple[int, range]]:
        """Number and layers of each pipeline stage that the rank has."""
        layers = stages(self.model, self.plan.num_stages, self.step.seq_len)  # pyright: ignore[reportArgumentType]
        return [(number, layers[number]) for number in range(self.at["pp"], self.plan.num_stages, self.plan.pp)]

    def layer(self, kind: LayerKind) -> Module:
        """The weights of a layer of ``kind``."""
        return layer_weights(self.model, kind, self.plan, self.at, self.lora)

    @property
    def num_nextn(self) -> int:
        """How many modules for multi-token prediction are trained: those that there are, unless adapters alone are."""
        return 0 if self.lora is not None else self.model.num_nextn_predict_layers

    def modules(self) -> list[tuple[Module, int]]:
        """The weights of each kind of layer, and of what stands around the layers, with how many of these there are."""
        found, every = [], self.model.layer_kinds()
        for _, layers in self.stages:
            kinds = Counter(every[layers.start : layers.stop])
            found += [(self.layer(kind), count) for kind, count in kinds.items()]
            ends = {"first": layers.start == 0, "last": layers.stop == self.model.num_hidden_layers}
            found.append((outer_weights(self.model, self.plan, self.at, **ends), 1))
            if ends["last"] and self.num_nextn:
                found.append((nextn_weights(self.model, self.plan, self.at), self.num_nextn))
        return found
