"""Shingles and n-grams: windows of consecutive words (or bytes) as 64-bit hashes.

A hash of a window is made by doubling: that of 2p units from two of p, and that of any length from two overlapping ones
of a power of two, in log2(length) passes over the array, for all windows at once.
"""

import numpy as np
import pyarrow as pa

from leyden.data.documents import pc
from leyden.data.engine import daft

_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(left: np.ndarray, right: np.ndarray | np.uint64) -> np.ndarray:
    """[N] uint64, a hash of two: a linear form of them through SplitMix64's finaliser (Steele et al. 2014)."""
    x = left * _MULTIPLIERS[0]
    x += right
    x ^= x >> np.uint64(30)
    x *= _MULTIPLIERS[1]
    x ^= x >> np.uint64(27)
    x *= _MULTIPLIERS[2]
    x ^= x >> np.uint64(31)
    return x


def words_of(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The words of texts whose words are parted by single spaces; an empty text has none.

    Returns:
        [W] large strings, all words of all texts; and [D+1] int64, where each text's begin.
    """
    lists = pc.split_pattern(texts, pattern=" ")
    counts = np.where(pc.binary_length(texts).to_numpy(zero_copy_only=False) > 0, pc.list_value_length(lists), 0)
    flat = pc.list_flatten(lists)
    if (counts == 0).any():  # an empty text was split into one empty word
        flat = flat.filter(pc.greater(pc.binary_length(flat), 0))
    return flat, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def hash_strings(strings: pa.Array) -> np.ndarray:
    """[W] uint64, by xxHash."""
    if not len(strings):
        return np.zeros(0, np.uint64)
    return np.asarray(daft.Series.from_arrow(strings).hash().to_arrow()).astype(np.uint64, copy=False)


def window_hashes(units: np.ndarray, length: int) -> np.ndarray:
    """[max(N-length+1, 0)] uint64, a hash of every window of ``length`` units of ``units`` [N] uint64."""
    if len(units) < length:
        return np.zeros(0, np.uint64)
    hashes, reach = mix(units, np.uint64(length)), 1
    while 2 * reach <= length:
        hashes, reach = mix(hashes[:-reach], hashes[reach:]), 2 * reach
    return mix(hashes[: len(units) - length + 1], hashes[length - reach :]) if reach < length else hashes


def inner_windows(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows that lie within one text each.

    Args:
        offsets: [D+1] int64, where the units of each text begin.
        length: of a window, in units.

    Returns:
        [W] int64, where each begins, counted over all texts; and [W] int64, the text it is in.
    """
    counts = np.maximum(np.diff(offsets) - length + 1, 0)
    texts = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - before[texts] + offsets[:-1][texts], texts


def shingle_sets(texts: pa.Array, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of each text, as MinHash sees it: windows of ``length`` words, or all words where fewer.

    Args:
        texts: [D] large strings, normalised.
        length: of a shingle, in words.

    Returns:
        [S] uint64, the hashes of each text's shingles, sorted, each once; and [D+1] int64, where each text's begin.
    """
    words, offsets = words_of(texts)
    units, counts = hash_strings(words), np.diff(offsets)
    hashes, owners = [], []
    for short in np.unique(counts[(counts > 0) & (counts < length)]):
        rows = np.flatnonzero(counts == short)
        hashes.append(window_hashes(units, short)[offsets[rows]])
        owners.append(rows)
    starts, rows = inner_windows(offsets, length)
    hashes.append(window_hashes(units, length)[starts])
    owners.append(rows)
    hash_, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((hash_, owner))
    hash_, owner = hash_[order], owner[order]
    fresh = np.ones(len(hash_), bool)
    fresh[1:] = (hash_[1:] != hash_[:-1]) | (owner[1:] != owner[:-1])
    return hash_[fresh], np.concatenate([[0], np.cumsum(np.bincount(owner[fresh], minlength=len(counts)))])


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """The share of the union of two sets (sorted, each element once) that is in both; of two empty ones 1."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both) if len(left) + len(right) else 1.0
