"""Counter-based random numbers: one for each position of each completion, without state."""

import hashlib
import secrets
import struct

_BLOCK = 16
"""Numbers that are computed one after the other: a step finds the means to do so out of the processor's caches."""


class Uniforms:
    """Numbers in [0, 1), 53 bits each, that depend on their key alone: seed, completion and position.

    A draw therefore comes out the same in whatever order, batch or step it is made, and after a sequence was swapped
    out or a guess taken back.

    Args:
        seed: -2^63 to 2^63 - 1. None: drawn from the system.
        index: of the completion among those of its request.
    """

    def __init__(self, seed: int | None, index: int) -> None:
        seed = secrets.randbits(63) if seed is None else seed
        self._hash = hashlib.blake2b(struct.pack("<qq", seed, index), digest_size=8)
        self._block, self._numbers = -1, list[float]()

    def __call__(self, position: int) -> float:
        """The number of the token at ``position`` of the output (from 0)."""
        block, place = divmod(position, _BLOCK)
        if block != self._block:
            self._block = block
            self._numbers = [self._number(block * _BLOCK + i) for i in range(_BLOCK)]
        return self._numbers[place]

    def _number(self, position: int) -> float:
        hashed = self._hash.copy()
        hashed.update(position.to_bytes(8, "little"))
        return (int.from_bytes(hashed.digest(), "little") >> 11) * 2.0**-53
