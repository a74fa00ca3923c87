"""The memory of a rank: a step is gone through on paper, and the highest level of live bytes is kept.

What is gone through is the order of the real code: FSDP gathers a layer's weights before its forward and once more
before its backward (the next layer's are on their way meanwhile), gradients are reduced as they arrive, every
micro-batch keeps its activations from its forward to its backward, and in a pipeline several do at a time.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from leyden.parallel.pipeline import boundary
from leyden.parallel.planner.activations import Ends, Layer, end_activations, layer_activations, nextn_activations
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.schedule import order_of_work
from leyden.parallel.planner.sizes import Module, ShardedGroup, nextn_weights, outer_weights

Kind = Literal["weights", "optimizer", "gradients", "gathered", "activations", "buffers"]
KINDS: tuple[Kind, ...] = ("weights", "optimizer", "gradients", "gathered", "activations", "buffers")


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank at the moment when it holds most.

    Attributes:
        held: before and after a step: weights, optimizer, and a pipeline's buffers.
        peak: the most.
        at_peak: what it is made of: ``weights`` (the float32 shards; those of a frozen model are as it computes),
            ``optimizer`` (moments), ``gradients``, ``gathered`` (weights in the dtype of the computation),
            ``activations`` (what is kept for the backward, and what an op needs for a moment), ``buffers`` (of
            collectives).
    """

    held: float
    peak: float
    at_peak: dict[Kind, float]


@dataclass
class _Meter:
    """Bytes that are live, by kind, and the highest level."""

    now: Counter[Kind] = field(default_factory=Counter)
    peak: float = 0.0
    at_peak: dict[Kind, float] = field(default_factory=dict)

    def hold(self, kind: Kind, num_bytes: float) -> None:
        """From now on."""
        self.now[kind] += num_bytes  # type: ignore[assignment]  (rows of a usual number may be no whole ones)
        if (total := sum(self.now.values())) > self.peak:
            self.peak, self.at_peak = total, {kind: float(self.now[kind]) for kind in KINDS}

    def free(self, kind: Kind, num_bytes: float) -> None:
        """Until now."""
        self.now[kind] -= num_bytes  # type: ignore[assignment]

    def need(self, kind: Kind, num_bytes: float) -> None:
        """For a moment."""
        self.hold(kind, num_bytes)
        self.free(kind, num_bytes)


def predict_memory(rank: Rank) -> RankMemory:
    """Of one step after the first."""
    meter, wide = _Meter(), rank.wide.itemsize
    kept = sum(count * _kept(module) for module, count in rank.modules())
    trained = kept if rank.lora is None else sum(count * module.adapters for module, count in rank.modules())
    if not rank.plan.settings.offload_optimizer:
        meter.hold("optimizer", _moments(rank, trained))
    meter.hold("weights", trained * wide)
    if rank.lora is not None:
        meter.hold("weights", sum(count * _frozen(module, rank) for module, count in rank.modules()))
    stages = [_Stage(rank, meter, number) for number, _ in rank.stages]
    for stage in stages:
        meter.hold("buffers", stage.received)
    held = sum(meter.now.values())
    if rank.plan.pp == 1:
        (stage,) = stages
        for index in range(min(2, rank.step.num_micro_batches)):  # later ones are like the second
            stage.forward()
            stage.backward()
            if index == 0:  # what has arrived becomes the sum
                stage.new_gradients = 0.0
            else:
                meter.free("gradients", stage.new_gradients)
    else:
        _pipeline(rank, stages)
    return RankMemory(float(held), meter.peak, meter.at_peak)


def _moments(rank: Rank, trained: int) -> int:
    """Bytes that the optimizer keeps beside ``trained`` weights."""
    if rank.moments is None:
        return 2 * trained * rank.wide.itemsize
    matrices = 0 if rank.lora is not None else sum(count * module.matrices for module, count in rank.modules())
    return matrices * rank.moments.matrix + (trained - matrices) * rank.moments.other


def _kept(module: Module) -> int:
    """Numbers of a module's weights that the rank keeps."""
    return sum(group.shard for group in module.groups) + module.replicated


def _frozen(module: Module, rank: Rank) -> float:
    """Bytes of a module's weights that the rank keeps and does not train: in the dtype in which it computes."""
    return sum(group.shard for group in module.groups) * rank.dtype.itemsize + module.replicated * rank.wide.itemsize


def _pipeline(rank: Rank, stages: list["_Stage"]) -> None:
    """Forwards and backwards of all stages of the rank in the order of the schedule, then the reductions."""
    plan = rank.plan
    # Later micro-batches hold what those in the middle do; rounds of an interleaved schedule stay whole.
    batches = min(rank.step.num_micro_batches, 3 * plan.pp)
    for direction, local in order_of_work(plan.pp, plan.settings.stages_per_rank, batches, rank.at["pp"]):
        if direction == "forward":
            stages[local].forward()
        else:
            stages[local].backward()
    for stage in stages:
        stage.reduce_all()


class _Stage:
    """The modules of one stage, as FSDP and autograd go through them."""

    def __init__(self, rank: Rank, meter: _Meter, number: int) -> None:
        self._rank, self._meter = rank, meter
        model, layers = rank.model, dict(rank.stages)[number]
        self.first, self.last = layers.start == 0, layers.stop == model.num_hidden_layers
        of_layers = model.layer_kinds()[layers.start : layers.stop]
        kinds = set(of_layers)
        modules = {kind: rank.layer(kind) for kind in kinds}
        activations = {kind: layer_activations(rank, kind) for kind in kinds}
        self._layers: list[tuple[Module, Layer]] = [(modules[kind], activations[kind]) for kind in of_layers]
        self._heads = 1  # uses of the output projection
        if self.last and rank.num_nextn:
            self._layers += [(nextn_weights(model, rank.plan, rank.at), nextn_activations(rank))] * rank.num_nextn
            self._heads += rank.num_nextn
        self._outer = outer_weights(model, rank.plan, rank.at, first=self.first, last=self.last)
        self._ends = end_activations(rank, self._outer) if self.last else Ends(0.0, 0.0)
        self._gathered: set[int] = set()  # positions of layers whose weights are here; -1: what is around them
        self._unreduced = False
        self.new_gradients = 0.0

    @property
    def received(self) -> float:
        """What other stages send, for which a pipeline has a buffer a micro-batch, made before the first step."""
        if self._rank.plan.pp == 1:
            return 0.0
        one = sum(t.numel() * t.itemsize for t in boundary(self._rank.model, self._rank.own, self._rank.dtype))
        return self._rank.step.num_micro_batches * one * ((not self.first) + (not self.last))

    def forward(self) -> None:
        """Of one micro-batch."""
        meter, settings = self._meter, self._rank.plan.settings
        self._gather(-1, self._outer)
        for position, (module, layer) in enumerate(self._layers):
            meter.hold("activations", layer.entry)
            self._gather(position, module)
            for half in (layer.attention, layer.feed_forward):
                meter.hold("activations", half.kept)
                meter.need("activations", half.forward)
            meter.free("activations", layer.kept - self._kept_until_backward(layer))
            if settings.reshard_after_forward:
                self._let_go(position, module)
        meter.hold("activations", self._heads * self._ends.kept)
        meter.need("activations", self._ends.loss)

    def backward(self) -> None:
        """Of one micro-batch; in a pipeline, gradients stay whole and weights stay here."""
        meter = self._meter
        piped = self._rank.plan.pp > 1
        self._gradients(self._outer, piped)
        meter.free("activations", self._heads * self._ends.kept)
        for position, (module, layer) in reversed(list(enumerate(self._layers))):
            self._gather(position, module)
            coming = self._layers[position - 1][0].groups[0] if position else None
            arriving = self._wire(coming) if coming is not None and position - 1 not in self._gathered else 0.0
            meter.hold("buffers", arriving)
            again = layer.kept - self._kept_until_backward(layer)
            if again:
                meter.hold("activations", again)
                meter.need("activations", max(layer.attention.forward, layer.feed_forward.forward))
            meter.need("activations", layer.feed_forward.backward + self._whole_gradients(module, "fsdp_experts"))
            meter.free("activations", layer.feed_forward.kept)
            meter.need("activations", layer.attention.backward)
            self._gradients(module, piped)
            meter.free("activations", layer.attention.kept + layer.entry)
            if not piped:
                self._let_go(position, module)
            meter.free("buffers", arriving)
        self._unreduced = True
        if not piped:
            self._let_go(-1, self._outer)

    def reduce_all(self) -> None:
        """The end of a pipeline's step: every module's gradients, one after the other."""
        for module in (self._outer, *(module for module, _ in self._layers)):
            for group in module.groups if self._rank.lora is None else ():
                self._meter.need("buffers", self._reduction(group))
                self._meter.hold("gradients", group.shard * self._rank.wide.itemsize)
                self._meter.free("gradients", group.numel * self._rank.reduce_dtype.itemsize)

    def _kept_until_backward(self, layer: Layer) -> float:
        mode = self._rank.plan.settings.activation_checkpointing
        if mode == "none":
            return layer.kept
        return layer.entry + (layer.attention.products + layer.feed_forward.products if mode == "selective" else 0)

    def _gather(self, position: int, module: Module) -> None:
        if position in self._gathered or self._is_in_place:
            return
        self._gathered.add(position)
        for group in module.groups:
            wire = self._wire(group)
            self._meter.hold("buffers", wire)
            self._meter.hold("gathered", group.numel * self._rank.dtype.itemsize)
            self._meter.free("buffers", wire)

    def _let_go(self, position: int, module: Module) -> None:
        if position in self._gathered:
            self._gathered.remove(position)
            self._meter.free("gathered", sum(g.numel for g in module.groups) * self._rank.dtype.itemsize)

    @property
    def _is_in_place(self) -> bool:
        """Whether one process computes with the frozen weights that it keeps."""
        return self._rank.lora is not None and self._rank.plan.world == 1

    def _wire(self, group: ShardedGroup) -> float:
        """The buffer into which shards arrive; alone, there is none."""
        return group.padded * self._rank.dtype.itemsize if group.ranks > 1 else 0.0

    def _whole_gradients(self, module: Module, axis: str) -> float:
        if self._rank.lora is not None:
            return 0.0
        return sum(group.numel for group in module.groups if group.axis == axis) * self._rank.dtype.itemsize

    def _reduction(self, group: ShardedGroup) -> float:
        """What is handed to a reduce-scatter and what comes of it, before it is float32."""
        return (group.padded + group.padded / group.ranks) * self._rank.reduce_dtype.itemsize

    def _gradients(self, module: Module, piped: bool) -> None:
        """Those of a module have been formed: reduced to this rank's shard, or in a pipeline added up whole."""
        meter, wide = self._meter, self._rank.wide.itemsize
        if self._rank.lora is not None:
            if not piped or not self._unreduced:
                meter.hold("gradients", module.adapters * wide)
                self.new_gradients += module.adapters * wide
            return
        if piped:
            if not self._unreduced:
                whole = sum(group.numel for group in module.groups) * self._rank.reduce_dtype.itemsize
                meter.hold("gradients", whole + module.replicated * wide)
            return
        for group in module.groups:
            meter.need("buffers", group.numel * self._rank.dtype.itemsize + self._reduction(group))
            meter.hold("gradients", group.shard * wide)
            self.new_gradients += group.shard * wide
        meter.hold("gradients", module.replicated * wide)
        self.new_gradients += module.replicated * wide
