"""Sizes of blocks that follow from the caches of the processor, so that none is right for one machine alone.

They are a pure function of the cache sizes that the system reports: nothing is timed, so every process on a machine
works in the same blocks and gets the same bits. ``leyden info --machine`` prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from leyden.ops.native import processor

_ASSUMED = {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}
"""The caches of a processor whose system does not report them."""


@dataclass(frozen=True)
class BlockSize:
    """One size of blocks.

    Attributes:
        name: what is cut into such blocks.
        unit: what the size counts.
        level: of the cache that a block should stay in.
        bytes_each: of that cache, for each unit.
        least, most: the bounds of the size, powers of two. Below the least, the overhead of a block is dearer than
            misses of the cache; beyond the most, a block would take too much memory.
    """

    name: str
    unit: str
    level: int
    bytes_each: int
    least: int
    most: int

    def of(self, caches: Mapping[int, int]) -> int:
        """The size for these caches (bytes by level): a power of two.

        A processor without this level has the one below for it; one that reports no cache is taken for a usual one.
        """
        units = _bytes(self.level, caches) // self.bytes_each
        return min(max(1 << max(units.bit_length() - 1, 0), self.least), self.most)

    @property
    def here(self) -> int:
        """The size on this machine."""
        return self.of(processor.caches())

    def described(self, caches: Mapping[int, int]) -> str:
        """The size and what it follows from, in words."""
        source = f"level {self.level} of {_bytes(self.level, caches) >> 10:,} KiB" if caches else "assumed caches"
        return f"{self.of(caches):,} {self.unit}, from {source}"


def _bytes(level: int, caches: Mapping[int, int]) -> int:
    known = caches or _ASSUMED
    return known[max((at for at in known if at <= level), default=min(known))]


LIGHTNING_SEGMENT = BlockSize("segment of lightning attention", "elements", 3, 64, 1 << 16, 1 << 21)
"""Of q: a dozen temporaries of a segment, in up to 4 bytes an element, stay in the last cache."""
SOFTMAX_SCORES = BlockSize("scores of softmax attention", "bytes", 3, 1, 4 << 20, 128 << 20)
"""Of one block of queries, in float32."""
RANGED_SCORES = BlockSize("scores of ranged attention", "bytes", 3, 2, 2 << 20, 64 << 20)
"""Of one block of queries and one key head, in float32; a backward holds their gradients beside them."""
WIDENED_WEIGHTS = BlockSize("int8 weights widened at once", "elements", 2, 2, 1 << 16, 1 << 22)
"""They are written in 16 bits and read again by a product, from a core's own cache."""

CHOICES = (LIGHTNING_SEGMENT, SOFTMAX_SCORES, RANGED_SCORES, WIDENED_WEIGHTS)
"""All of them, as they are printed."""
