"""The order of documents and of sequences: pseudo-random numbers that no library's next version may change."""

import numpy as np

from leyden.core.splitmix import mix


def shuffled(count: int, *keys: int) -> np.ndarray:
    """The numbers below ``count`` in an order that depends on ``keys`` alone: [count] int64."""
    return np.argsort(hashes(np.arange(count), *keys), kind="stable")


def hashes(index: np.ndarray, *keys: int) -> np.ndarray:
    """A pseudo-random number for each index [D] -> uint64: splitmix64 (Steele, Lea and Flood, 2014), keyed.

    Written out, for the streams of numpy's generators may change between versions, and a run must resume under any.
    """
    value = np.array([keys[0] % 2**64], np.uint64)
    for key in (*(np.array([key], np.uint64) for key in keys[1:]), index.astype(np.uint64)):
        value = mix(value) + key
    return mix(value)
