"""Exact tables from 64-bit keys to rows, asked for many keys at once: open addressing, in numpy."""

import numpy as np

_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: multiplying spreads neighbouring keys


class KeyTable:
    """Finds keys among those given.

    Args:
        keys: [N] uint64, different, none of them 2^64 - 1.
    """

    def __init__(self, keys: np.ndarray) -> None:
        bits = max(int(2 * max(len(keys), 1) - 1).bit_length(), 1)  # at most half full
        self._mask = (1 << bits) - 1
        self._shift = np.uint64(64 - bits)
        self._keys = np.full(1 << bits, _EMPTY)
        self._rows = np.zeros(1 << bits, np.int32 if len(keys) < 2**31 else np.int64)
        rows, slots = np.arange(len(keys)), self._slots(keys)
        while len(rows):
            free = self._keys[slots] == _EMPTY
            first = np.unique(slots[free], return_index=True)[1]  # of those that want one free slot, one gets it
            placed = np.flatnonzero(free)[first]
            self._keys[slots[placed]] = keys[rows[placed]]
            self._rows[slots[placed]] = rows[placed]
            left = np.ones(len(rows), bool)
            left[placed] = False
            rows, slots = rows[left], (slots[left] + 1) & self._mask

    def find(self, keys: np.ndarray) -> np.ndarray:
        """[Q] int64, the row of each key [Q] uint64; -1 where it is not there."""
        result = np.full(len(keys), -1, np.int64)
        asked, slots = np.arange(len(keys)), self._slots(keys)
        while len(asked):
            held = self._keys[slots]
            same = held == keys[asked]
            result[asked[same]] = self._rows[slots[same]]
            on = ~same & (held != _EMPTY)
            asked, slots = asked[on], (slots[on] + 1) & self._mask
        return result

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * _ODD) >> self._shift).astype(np.int64)
