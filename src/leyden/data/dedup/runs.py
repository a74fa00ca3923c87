"""External sorting: sorted runs on disk, by which records of all shards meet by key within bounded memory.

Every shard leaves one run, its records sorted by a 64-bit key, as two ``.npy`` files that are read through the page
cache. A partition is a range of keys, gathered from all runs; the ranges are cut so that one fits the memory asked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.data.arrays import write_array

_COPIES = 4
"""How many times a partition's records are in memory while it is sorted and grouped."""
END = 1 << 64
"""One past the greatest key."""


def file_name(shard: str) -> str:
    """The name of a shard as one part of a path."""
    return quote(shard, safe="")


def save_array(path: Path, array: np.ndarray) -> Path:
    """Write ``array`` to ``path``, whole or not at all."""
    with atomic_file(path) as part:
        write_array(part, array)
    return path


def load_array(path: Path) -> np.ndarray:
    """The array of a file, mapped into memory where it has elements.

    Raises:
        UserError: the file is missing, or cut short.
    """
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an array without elements cannot be mapped
        pass
    except (OSError, EOFError) as error:
        raise _damaged(path, error) from None
    try:
        return np.load(path)
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is missing or damaged ({error}); remove its directory and run again.")


def write_run(path: Path, keys: np.ndarray, values: np.ndarray) -> list[Path]:
    """Write records as a run: ``path`` with ``.values.npy`` and with ``.keys.npy``.

    Args:
        keys: [N] uint64, in any order.
        values: [N] of any dtype.

    Returns:
        The two files.
    """
    order = np.argsort(keys, kind="stable")
    return [save_array(_values_file(path), values[order]), save_array(_keys_file(path), keys[order])]


def mark_of(path: Path) -> Path:
    """The mark of a run, or of whatever else stands at ``path`` in several files."""
    return path.with_name(path.name + ".done")


def _keys_file(path: Path) -> Path:
    return path.with_name(path.name + ".keys.npy")


def _values_file(path: Path) -> Path:
    return path.with_name(path.name + ".values.npy")


@dataclass(frozen=True)
class Runs:
    """Runs with values of one dtype.

    Attributes:
        paths: as they were given to :func:`write_run`.
    """

    paths: tuple[Path, ...]

    def num_records(self) -> int:
        """Of all runs together."""
        return sum(len(_keys(path)) for path in self.paths)

    def ranges(self, memory_bytes: int) -> list[tuple[int, int]]:
        """Ranges of keys, end excluded, that cover all of them; a task that gathers one uses ``memory_bytes`` or less.

        Keys must be hashes: the ranges are of equal width. Records of one key are not parted, so a run should hold few
        of the same key; then a key has at most a few records a shard.
        """
        record = 8 + 4 + max((_values(path).dtype.itemsize for path in self.paths), default=0)
        count = max(1, -(-self.num_records() * record * _COPIES // memory_bytes))
        borders = [END * index // count for index in range(count + 1)]
        return list(zip(borders[:-1], borders[1:], strict=True))

    def gather(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The records with ``low <= key < high``: [N] uint64 keys, [N] values, [N] int32 index of the run; unsorted."""
        keys: list[Any] = []
        values: list[Any] = []
        sources: list[Any] = []
        for index, path in enumerate(self.paths):
            of_run = _keys(path)
            begin, end = _place(of_run, low), _place(of_run, high)
            if begin < end:
                keys.append(np.array(of_run[begin:end]))
                values.append(np.array(_values(path)[begin:end]))
                sources.append(np.full(end - begin, index, np.int32))
        if not keys:
            empty = _values(self.paths[0])[:0] if self.paths else np.zeros(0)
            return np.zeros(0, np.uint64), np.array(empty), np.zeros(0, np.int32)
        return np.concatenate(keys), np.concatenate(values), np.concatenate(sources)


def groups(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort records by columns, and say where equal ones begin.

    Args:
        columns: [N] each; the first is compared first.

    Returns:
        [N] int64, the order that sorts; and [N] bool over the sorted records, true where it differs from the last.
    """
    order = np.lexsort(columns[::-1])
    fresh = np.ones(len(order), bool)
    if len(order):
        fresh[1:] = False
        for column in columns:
            of_order = column[order]
            fresh[1:] |= of_order[1:] != of_order[:-1]
    return order, fresh


def _place(keys: np.ndarray, key: int) -> int:
    return len(keys) if key >= END else int(np.searchsorted(keys, np.uint64(key)))


def _keys(path: Path) -> np.ndarray:
    return load_array(_keys_file(path))


def _values(path: Path) -> np.ndarray:
    return load_array(_values_file(path))
