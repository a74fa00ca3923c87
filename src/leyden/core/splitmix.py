"""A mixing function whose values no library's next version may change: splitmix64 (Steele, Lea and Flood, 2014)."""

import numpy as np


def mix(value: np.ndarray) -> np.ndarray:
    """A pseudo-random number for each of some numbers: uint64 -> uint64, one to one."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
