"""Weights move from the shards of a training model to those of a serving model on the same ranks, in memory.

Both models say by a :class:`~leyden.parallel.part.Part` what a rank has of each weight: FSDP, tensor, expert and
pipeline ranks while it trains, tensor and expert ranks while it serves. What the part of one rank in training and the
part of another in serving have in common is a list of rectangles, which the one sends to the other. Weights move one
after the other, so that beside the two models no rank ever holds more than one weight's shards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist

from leyden.core.errors import UserError
from leyden.model import HybridLM
from leyden.model.quantized import scale_of
from leyden.ops import quantize_rows
from leyden.parallel.attachment import Attached
from leyden.parallel.mesh import Mesh, coordinates
from leyden.parallel.part import Box, Part
from leyden.parallel.weights import part_of

_MAX_LISTED = 8


@dataclass(frozen=True)
class _Rectangle:
    """A part of a weight that moves.

    Attributes:
        source, target: the ranks.
        taken, put: where it begins in the tensors of these.
        sizes: of its dims.
    """

    source: int
    target: int
    taken: tuple[int, ...]
    put: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Its elements."""
        return prod(self.sizes)

    def view(self, tensor: torch.Tensor, starts: tuple[int, ...]) -> torch.Tensor:
        """Its place in ``tensor``, which begins at ``starts``."""
        return tensor[tuple(slice(at, at + size) for at, size in zip(starts, self.sizes, strict=True))]


@dataclass(frozen=True)
class _Move:
    """What becomes of one weight.

    Attributes:
        dtype: in which it travels.
        rectangles: that this rank sends or receives, in an order that is the same on all ranks.
        travels: whether any rank sends anything to another.
    """

    dtype: torch.dtype
    rectangles: tuple[_Rectangle, ...]
    travels: bool


class Resharding:
    """How the weights of a training model become those of a serving model; made once, moved after every update.

    All ranks make it, and call :meth:`put`, at the same moment.

    Args:
        trained: of :func:`leyden.parallel.attach`, under any plan.
        training_mesh: of that.
        serving: this rank's part of a model by :func:`leyden.parallel.serving.divide`, or a whole model on each rank;
            its matrices may be of 8 bits.
        serving_mesh: of that; None where each rank has a whole model.

    Raises:
        UserError: the models are not of one shape; on all ranks.
    """

    def __init__(
        self, trained: Attached, training_mesh: Mesh, serving: HybridLM, serving_mesh: Mesh | None = None
    ) -> None:
        self.serving = serving
        self._trained, self._group = trained, training_mesh.groups["world"]
        self._rank, world = training_mesh.rank, training_mesh.plan.world
        self._targets = serving.state_dict()
        own = {name: (weight.part, weight.local.dtype) for name, weight in trained.weights.items()}
        wanted = {name: target.dtype for name, target in self._targets.items()}
        told = self._told((own, wanted, trained.model.config))
        shapes = {name: part.shape for weights, _, _ in told for name, (part, _) in weights.items()}
        self._parts = {
            name: [_serving_part(name, shape, serving_mesh, rank) for rank in range(world)]
            for name, shape in shapes.items()
        }
        problems = self._told(self._problems(shapes, [config for _, _, config in told]))
        if any(problems):
            rank, first = next((rank, found) for rank, found in enumerate(problems) if found)
            raise UserError(f"the trained weights do not fit the serving model of rank {rank}: {first}.")
        self._moves = {
            name: self._move(name, [weights.get(name) for weights, _, _ in told], wanted[name])
            for name in sorted(shapes)
        }

    def put(self) -> None:
        """Write the trained weights into the serving model, a weight at a time, and its RoPE base and scaling."""
        for name, move in self._moves.items():
            self._put(name, move)
        rope = self._trained.model.config.rope
        if rope != self.serving.config.rope:
            self.serving.set_rope(rope)

    def _told(self, value: Any) -> list[Any]:
        """What every rank says, by rank."""
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self._group.size()
        dist.all_gather_object(found, value, group=self._group)
        return found

    def _problems(self, shapes: dict[str, tuple[int, ...]], configs: list[Any]) -> str:
        config = self.serving.config
        tied = {name for name in self._targets if config.tie_word_embeddings and name.startswith("lm_head.")}
        scales = {scale_of(name) for name, target in self._targets.items() if target.dtype == torch.int8}
        found = [f"{name} was not trained" for name in self._targets if name not in shapes.keys() | tied | scales]
        for name, shape in shapes.items():
            if name not in self._targets:
                found.append(f"{name} is not a weight of it")
            elif self._targets[name].shape != self._parts[name][self._rank].local_shape:
                found.append(f"{name} is {list(self._targets[name].shape)} of a whole {list(shape)}")
        if any(given.rope != configs[0].rope for given in configs):
            found.append("the stages of the trained model turn positions by different RoPE bases or scalings")
        more = len(found) - _MAX_LISTED
        return "; ".join([*found[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])

    def _move(self, name: str, held: list[tuple[Part, torch.dtype] | None], dtype: torch.dtype) -> _Move:
        """Of the weight ``name``, of which each rank has in training what ``held`` says."""
        holders: dict[Part, list[int]] = {}
        for rank, given in enumerate(held):
            if given is not None and 0 not in given[0].local_shape:
                holders.setdefault(given[0], []).append(rank)
        shape = next(iter(holders)).shape
        assert sum(prod(part.local_shape) for part in holders) == prod(shape), (
            f"the ranks' parts of {name} are all of it"
        )
        trained = next(given[1] for given in held if given is not None)
        rectangles = [
            _Rectangle(source, target, taken, put, sizes)
            for target, wanted in enumerate(self._parts[name])
            for part, ranks in holders.items()
            for source in [target if target in ranks else ranks[target % len(ranks)]]
            for taken, put, sizes in _common(part, wanted)
        ]
        own = tuple(each for each in rectangles if self._rank in (each.source, each.target))
        return _Move(
            trained if dtype == torch.int8 else dtype, own, any(each.source != each.target for each in rectangles)
        )

    def _put(self, name: str, move: _Move) -> None:
        target = self._targets[name]
        source = self._trained.weights[name].local if name in self._trained.weights else None
        rounded = target.dtype == torch.int8
        into = torch.empty(target.shape, dtype=move.dtype, device=target.device) if rounded else target
        with torch.inference_mode(target.is_inference()), torch.no_grad():
            for each in move.rectangles:
                if each.source == each.target:
                    assert source is not None, "a rank sends what it has"
                    each.view(into, each.put).copy_(each.view(source, each.taken))
            if move.travels:
                self._exchange(source, into, move)
            if rounded:
                values, scale = quantize_rows(into)
                target.copy_(values)
                self._targets[scale_of(name)].copy_(scale)

    def _exchange(self, source: torch.Tensor | None, into: torch.Tensor, move: _Move) -> None:
        """Send the others what they lack, and receive what is lacking here."""
        assert self._group is not None, "rectangles travel between ranks"
        ranks = range(self._group.size())
        away = [each for each in move.rectangles if each.source != each.target]
        sent = [[each for each in away if each.source == self._rank and each.target == rank] for rank in ranks]
        received = [[each for each in away if each.target == self._rank and each.source == rank] for rank in ranks]
        counts, arriving = ([sum(each.numel for each in some) for some in lists] for lists in (sent, received))
        out = torch.empty(sum(counts), dtype=move.dtype, device=into.device)
        for each, stretch in _stretches(sent, out):
            assert source is not None, "a rank sends what it has"
            stretch.copy_(each.view(source, each.taken))
        come = torch.empty(sum(arriving), dtype=move.dtype, device=into.device)
        dist.all_to_all_single(come, out, arriving, counts, group=self._group)
        for each, stretch in _stretches(received, come):
            each.view(into, each.put).copy_(stretch)


def _stretches(lists: list[list[_Rectangle]], flat: torch.Tensor) -> Iterator[tuple[_Rectangle, torch.Tensor]]:
    """Each rectangle with its place in ``flat``, where they lie one behind the other."""
    at = 0
    for each in (each for some in lists for each in some):
        yield each, flat[at : at + each.numel].view(each.sizes)
        at += each.numel


def _serving_part(name: str, shape: tuple[int, ...], mesh: Mesh | None, rank: int) -> Part:
    return Part.whole(shape) if mesh is None else part_of(name, shape, mesh.plan, coordinates(mesh.plan, rank))


def _common(one: Part, other: Part) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """The rectangles that two parts of a weight share: where each begins in the one and in the other, and its sizes."""
    for a in one.boxes():
        for b in other.boxes():
            found = _overlap(a, b)
            if found is not None:
                yield found


def _overlap(a: Box, b: Box) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    starts = [max(x, y) for x, y in zip(a.whole, b.whole, strict=True)]
    stops = [min(x + m, y + n) for x, m, y, n in zip(a.whole, a.sizes, b.whole, b.sizes, strict=True)]
    if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
        return None
    taken, put = (
        tuple(at + start - whole for at, start, whole in zip(box.local, starts, box.whole, strict=True))
        for box in (a, b)
    )
    return taken, put, tuple(stop - start for start, stop in zip(starts, stops, strict=True))
