"""The roofline: how long an op takes at least on a machine, from what it computes and what it moves.

An op computes and moves at the same time at best, so it takes the longer of the two times (Williams, Waterman and
Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM 52(4), 2009). Which one
that is, the arithmetic intensity says: operations a byte, against those that the machine computes while it moves one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes to and from memory, and floating-point operations of matrix products."""

    bytes: float
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.bytes * times, self.flops * times)

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Speed:
    """What a machine reaches at most, measured or published.

    Attributes:
        bytes_per_second: of its memory; measured: of a large copy, bytes read and bytes written together.
        flops_per_second: of bfloat16 matrix products.
    """

    bytes_per_second: float
    flops_per_second: float

    @property
    def ridge(self) -> float:
        """The intensity from which an op is bound by operations."""
        return self.flops_per_second / self.bytes_per_second

    def floor(self, cost: Cost) -> tuple[float, str]:
        """Seconds that ``cost`` takes at least, and what bounds them: ``"bytes"`` or ``"FLOPs"``."""
        moving, computing = cost.bytes / self.bytes_per_second, cost.flops / self.flops_per_second
        return (moving, "bytes") if moving >= computing else (computing, "FLOPs")
