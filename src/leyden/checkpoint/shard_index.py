"""An index of which rank holds which rectangle of each weight, and the gathering of a rectangle on one rank."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from leyden.checkpoint.coordinator import Coordinator
from leyden.checkpoint.pieces import TensorPiece


@dataclass(frozen=True)
class Rectangle:
    """Of a tensor.

    Attributes:
        start: where it begins in each dim.
        sizes: how far it goes.
    """

    start: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Rectangle":
        """All of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    def common(self, other: "Rectangle") -> "Rectangle | None":
        """What lies in both."""
        start = tuple(map(max, self.start, other.start))
        stops = [min(a + m, b + n) for a, m, b, n in zip(self.start, self.sizes, other.start, other.sizes, strict=True)]
        sizes = tuple(stop - at for at, stop in zip(start, stops, strict=True))
        return None if any(size <= 0 for size in sizes) else Rectangle(start, sizes)

    def of(self, tensor: torch.Tensor, start: tuple[int, ...]) -> torch.Tensor:
        """The rectangle, a view, of a tensor that itself begins at ``start``."""
        bounds = zip(self.start, self.sizes, start, strict=True)
        return tensor[tuple(slice(at - origin, at - origin + size) for at, size, origin in bounds)]


class ShardIndex:
    """The pieces of weights that the ranks hold; all ranks make this and call its methods at the same points.

    Args:
        pieces: this rank's, by name.
        coordinator: the ranks.
    """

    def __init__(self, pieces: Mapping[str, TensorPiece], coordinator: Coordinator) -> None:
        self._pieces, self._coordinator = pieces, coordinator
        self._ranks: dict[str, dict[Rectangle, list[int]]] = {}
        for rank, parts in enumerate(
            coordinator.on_all_ranks(lambda: {name: piece.part for name, piece in pieces.items()})
        ):
            for name, part in parts.items():
                for box in part.boxes():
                    self._ranks.setdefault(name, {}).setdefault(Rectangle(box.whole, box.sizes), []).append(rank)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with the weights that there should be.

        Raises:
            RuntimeError: some are missing or held in part (a defect of the plan, not of what a user gave).
        """
        held = {name: sum(math.prod(box.sizes) for box in boxes) for name, boxes in self._ranks.items()}
        wrong = [name for name, shape in shapes.items() if held.get(name) != math.prod(shape)]
        if wrong or held.keys() != shapes.keys():
            raise RuntimeError(f"the ranks do not hold the model: {', '.join(wrong or held.keys() - shapes.keys())}")

    def gather(self, name: str, wanted: Rectangle, to: int, dtype: torch.dtype) -> torch.Tensor | None:
        """``wanted`` of the weight ``name`` in ``dtype`` and host memory, on rank ``to``; None on the others."""
        whole = torch.empty(wanted.sizes, dtype=dtype) if self._coordinator.rank == to else None
        for box, ranks in self._ranks[name].items():
            part = wanted.common(box)
            if part is None:
                continue
            sender = to if to in ranks else ranks[to % len(ranks)]
            if self._coordinator.rank == sender:
                held = part.of(self._pieces[name].chunks()[box.start], box.start)
                if whole is not None:
                    part.of(whole, wanted.start).copy_(held)
                else:
                    dist.send(held.to("cpu", dtype).contiguous(), group_dst=to, group=self._coordinator.group)
            elif whole is not None:
                self._receive(part.of(whole, wanted.start), sender)
        return whole

    def _receive(self, target: torch.Tensor, sender: int) -> None:
        arrived = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
        dist.recv(arrived, group_src=sender, group=self._coordinator.group)
        if arrived is not target:
            target.copy_(arrived)
