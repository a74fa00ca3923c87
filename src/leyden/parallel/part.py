"""Which part of a tensor a rank holds: what slices weights, and what lets a checkpoint be read under another plan.

A part is a list of spans for each dim: the rank's tensor is what they cut out, one behind the other. One span is the
rule; the gate and up projections of an expert, stacked in one dim and each divided, make two.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

Span = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle that lies in a rank's tensor and in the whole one.

    Attributes:
        local: where it begins in the rank's tensor.
        whole: where it begins in the whole one.
        sizes: of its dims.
    """

    local: tuple[int, ...]
    whole: tuple[int, ...]
    sizes: tuple[int, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rectangle of a rank's ``tensor``, a view."""
        return tensor[tuple(slice(start, start + size) for start, size in zip(self.local, self.sizes, strict=True))]


@dataclass(frozen=True)
class Part:
    """A rank's part of a tensor.

    Attributes:
        shape: of the whole tensor.
        spans: for each dim, what the rank holds of it, in the order in which it holds it.
    """

    shape: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Part":
        """All of a tensor."""
        return cls(tuple(shape), tuple(((0, size),) for size in shape))

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the rank's tensor."""
        return tuple(sum(stop - start for start, stop in spans) for spans in self.spans)

    @property
    def is_whole(self) -> bool:
        """Whether the rank holds everything."""
        return self.spans == Part.whole(self.shape).spans

    def narrow(self, dim: int, index: int, count: int, blocks: int = 1) -> "Part":
        """Share ``index`` of ``count`` of what this part has of ``dim``, as even as it can be.

        Args:
            dim: which.
            index, count: which share of how many; the first ones are the smaller where they are unequal.
            blocks: how many equal blocks the dim stacks, each divided by itself.
        """
        size = self.local_shape[dim] // blocks
        first, last = size * index // count, size * (index + 1) // count
        return self._take(dim, [(block * size + first, block * size + last) for block in range(blocks)])

    def chunk(self, dim: int, index: int, count: int) -> "Part":
        """Chunk ``index`` of ``count`` as FSDP cuts them: all but the last of the same size, the last ones perhaps
        empty."""
        size = self.local_shape[dim]
        step = -(-size // count)
        return self._take(dim, [(min(index * step, size), min((index + 1) * step, size))])

    def _take(self, dim: int, wanted: list[Span]) -> "Part":
        """What lies between local bounds of ``dim``."""
        found: list[Span] = []
        for first, last in wanted:
            at = 0
            for start, stop in self.spans[dim]:
                low, high = max(first, at), min(last, at + stop - start)
                if low < high:
                    found.append((start + low - at, start + high - at))
                at += stop - start
        return Part(self.shape, (*self.spans[:dim], tuple(found), *self.spans[dim + 1 :]))

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rank's part of the whole ``tensor``: contiguous, and shares nothing with it unless it is all of it."""
        for dim, spans in enumerate(self.spans):
            if spans != ((0, self.shape[dim]),):
                pieces = [tensor.narrow(dim, start, stop - start) for start, stop in spans]
                tensor = torch.cat(pieces, dim) if pieces else tensor.narrow(dim, 0, 0)
        return tensor if self.is_whole else tensor.contiguous()

    def boxes(self) -> Iterator[Box]:
        """The rectangles that make up the part; none where it is empty."""
        if 0 in self.local_shape:
            return
        placed = []
        for spans in self.spans:
            starts = itertools.accumulate((stop - start for start, stop in spans), initial=0)
            placed.append([(at, start, stop - start) for at, (start, stop) in zip(starts, spans, strict=False)])
        for combination in itertools.product(*placed):
            local, whole, sizes = zip(*combination, strict=True) if combination else ((), (), ())
            yield Box(local, whole, sizes)
