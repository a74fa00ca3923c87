"""Work on whole matrices of which every rank holds a part: each is brought to one rank, worked on there, given back.

The matrices of a stage are dealt to the ranks that hold a part of them, so that these work alike, and travel in rounds
of bounded size, two all-to-alls each. It does not matter how a plan divides a weight (FSDP, tensor, expert or
expert-tensor ranks): the rank that works on a matrix sees all of it, as one process would.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from leyden.parallel.part import Part, Span
from leyden.parallel.shard import Weights

Work = Callable[[str, torch.Tensor], torch.Tensor]
"""From a weight's name and the whole of it, or of some of its experts, to what takes its place, of the same shape."""

_ROUND_NUMBERS = 2**25
"""How many numbers a rank receives in one round, unless one matrix alone has more."""

_Spans = tuple[tuple[Span, ...], ...]


@dataclass(frozen=True)
class _Unit:
    """A weight, or one expert of it.

    Attributes:
        name: of the weight.
        expert: which; None: the weight is no stack.
        shape: of the matrix.
        holders: the ranks that have a part of it, with that part and where in their tensor the expert is.
        senders: those of them that together have all of it once.
    """

    name: str
    expert: int | None
    shape: tuple[int, ...]
    holders: dict[int, tuple[Part, int]]
    senders: tuple[int, ...]

    def of(self, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        """The part of the matrix in ``rank``'s tensor of the weight, a view."""
        return tensor if self.expert is None else tensor[self.holders[rank][1]]

    @property
    def numbers(self) -> int:
        """Of the matrix."""
        return torch.Size(self.shape).numel()

    @property
    def cost(self) -> float:
        """Of products of the matrix with itself, by which the work is dealt."""
        return self.numbers * min(self.shape)


class WholeMatrices:
    """The matrices among the weights of a rank.

    Args:
        weights: of the rank; all ranks of its stage make this at the same time.
        names: of the matrices among them, and of the stacks of experts' matrices, the same on all ranks.
    """

    def __init__(self, weights: Weights, names: list[str]) -> None:
        self._group, self._device = weights.stage, weights.device
        self._rank = 0 if self._group is None else self._group.rank()
        self._rounds: list[dict[int, list[_Unit]]] = []
        self._local: list[_Unit] = []
        if self._group is None:
            return
        held = [(weights[name].part.spans, weights[name].counted) for name in names]
        everyone: list[list[tuple[_Spans, bool]]] = [[]] * self._group.size()
        dist.all_gather_object(everyone, held, group=self._group)
        units = [
            unit
            for index, name in enumerate(names)
            for unit in _units(name, weights[name].part.shape, [of_rank[index] for of_rank in everyone])
        ]
        alone = [unit for unit in units if len(unit.holders) == 1]
        self._local = [unit for unit in alone if self._rank in unit.holders]
        self._rounds = list(_rounds(_dealt([unit for unit in units if len(unit.holders) > 1], self._group.size())))

    def apply(self, tensors: Mapping[str, torch.Tensor], work: Work) -> None:
        """Replace every matrix by what ``work`` makes of it; all ranks of the stage call this.

        Args:
            tensors: this rank's parts, one a name, of one dtype; written to in place.
            work: done on the device of the weights.
        """
        if self._group is None:
            for name, tensor in tensors.items():
                tensor.copy_(work(name, tensor.to(self._device)))
            return
        for unit in self._local:
            part = unit.of(tensors[unit.name], self._rank)
            part.copy_(work(unit.name, part.to(self._device)))
        for dealt in self._rounds:
            self._round(dealt, tensors, work)

    def _round(self, dealt: dict[int, list[_Unit]], tensors: Mapping[str, torch.Tensor], work: Work) -> None:
        here, own = self._rank, dealt.get(self._rank, [])
        dtype = next(iter(tensors.values())).dtype
        sent = {
            owner: [unit.of(tensors[unit.name], here) for unit in units if here in unit.senders]
            for owner, units in dealt.items()
        }
        pieces = self._exchange(sent, _shapes_sent(own), dtype)
        results = {id(unit): work(unit.name, self._assembled(unit, pieces, dtype)) for unit in own}
        given = {
            rank: [unit.holders[rank][0].cut(results[id(unit)]) for unit in own if rank in unit.holders]
            for rank in {rank for unit in own for rank in unit.holders}
        }
        mine = {owner: [unit for unit in units if here in unit.holders] for owner, units in dealt.items()}
        shapes = {owner: [unit.holders[here][0].local_shape for unit in units] for owner, units in mine.items()}
        for owner, updates in self._exchange(given, shapes, dtype).items():
            for unit, update in zip(mine.get(owner, []), updates, strict=True):
                unit.of(tensors[unit.name], here).copy_(update)

    def _assembled(self, unit: _Unit, pieces: dict[int, list[torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
        """A whole matrix; what was received of it is taken from ``pieces``."""
        whole = torch.empty(unit.shape, dtype=dtype, device=self._device)
        for rank in unit.senders:
            piece = pieces[rank].pop(0)
            for box in unit.holders[rank][0].boxes():
                place = tuple(slice(start, start + size) for start, size in zip(box.whole, box.sizes, strict=True))
                whole[place] = box.of(piece)
        return whole

    def _exchange(
        self, sent: dict[int, list[torch.Tensor]], received: dict[int, list[tuple[int, ...]]], dtype: torch.dtype
    ) -> dict[int, list[torch.Tensor]]:
        """Send each rank its tensors; what the others sent, of these shapes, by rank."""
        assert self._group is not None, "one rank exchanges nothing"
        ranks = range(self._group.size())
        shapes = [received.get(rank, []) for rank in ranks]
        out = [sum(tensor.numel() for tensor in sent.get(rank, [])) for rank in ranks]
        sizes = [sum(torch.Size(shape).numel() for shape in of_rank) for of_rank in shapes]
        flat = [tensor.flatten().to(self._device) for rank in ranks for tensor in sent.get(rank, [])]
        arrived = torch.empty(sum(sizes), dtype=dtype, device=self._device)
        given = torch.cat(flat) if flat else torch.empty(0, dtype=dtype, device=self._device)
        dist.all_to_all_single(arrived, given, sizes, out, group=self._group)
        found: dict[int, list[torch.Tensor]] = {}
        for rank, of_rank in zip(ranks, arrived.split(sizes), strict=True):
            parts = of_rank.split([torch.Size(shape).numel() for shape in shapes[rank]])
            found[rank] = [part.view(shape) for part, shape in zip(parts, shapes[rank], strict=True)]
        return found


def _shapes_sent(units: list[_Unit]) -> dict[int, list[tuple[int, ...]]]:
    """By rank, the shapes of the parts of ``units`` that it sends."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for unit in units:
        for rank in unit.senders:
            found.setdefault(rank, []).append(unit.holders[rank][0].local_shape)
    return found


def _units(name: str, shape: tuple[int, ...], held: list[tuple[_Spans, bool]]) -> Iterator[_Unit]:
    """The matrices of a weight; ``held`` is what each rank holds of it, and whether that counts."""
    stacked = len(shape) == 3
    for expert in range(shape[0]) if stacked else [None]:
        holders: dict[int, tuple[Part, int]] = {}
        senders = []
        for rank, (spans, counted) in enumerate(held):
            place = 0 if expert is None else _place(spans[0], expert)
            part = Part(shape[1:], spans[1:]) if stacked else Part(shape, spans)
            if place is None or 0 in part.local_shape:
                continue
            holders[rank] = part, place
            if counted:
                senders.append(rank)
        yield _Unit(name, expert, shape[-2:], holders, tuple(senders))


def _place(spans: tuple[Span, ...], index: int) -> int | None:
    """Where a rank that holds ``spans`` of a dim has ``index`` of it; None: nowhere."""
    at = 0
    for start, stop in spans:
        if start <= index < stop:
            return at + index - start
        at += stop - start
    return None


def _dealt(units: list[_Unit], size: int) -> dict[int, list[_Unit]]:
    """Each to the holder that has least to do so far, the dearest first."""
    load, dealt = [0.0] * size, dict[int, list[_Unit]]()
    for unit in sorted(units, key=lambda unit: -unit.cost):
        owner = min(unit.holders, key=lambda rank: (load[rank], rank))
        load[owner] += unit.cost
        dealt.setdefault(owner, []).append(unit)
    return dealt


def _rounds(dealt: dict[int, list[_Unit]]) -> Iterator[dict[int, list[_Unit]]]:
    """The same in rounds in which no rank receives more than :data:`_ROUND_NUMBERS`, or else one matrix."""
    left = {owner: list(units) for owner, units in sorted(dealt.items())}
    while any(left.values()):
        taken: dict[int, list[_Unit]] = {}
        for owner, units in left.items():
            numbers = 0
            while units and (not numbers or numbers + units[0].numbers <= _ROUND_NUMBERS):
                numbers += units[0].numbers
                taken.setdefault(owner, []).append(units.pop(0))
        yield taken
