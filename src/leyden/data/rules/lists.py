"""Lists of words, domains and addresses, one a line, given by path; none comes with Leyden."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from leyden.core.errors import UserError

Made = TypeVar("Made")


def load(path: Path, make: Callable[[list[str]], Made]) -> Made:
    """What ``make`` makes of a list's entries, once for each process while the file stays as it is.

    Entries are the lines of a UTF-8 file without the space around them; blank lines and those that begin with ``#`` are
    left out.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or holds nothing.
    """
    try:
        return _load(path, path.stat().st_mtime_ns, make)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; a list is plain text, one entry a line.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; a list is plain text, one entry a line.") from None


@functools.lru_cache(16)
def _load(path: Path, written: int, make: Callable[[list[str]], Made]) -> Made:
    with path.open(encoding="utf-8-sig") as file:
        entries = [line.strip() for line in file if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise UserError(f"{path} holds no entry; a list is plain text, one entry a line.")
    return make(entries)


def lowered(entries: list[str]) -> frozenset[str]:
    """The entries in lower case."""
    return frozenset(entry.lower() for entry in entries)


class HashedSet:
    """A set of very many strings at 8 bytes each.

    Of n strings that are not in a set of m, about n m / 2^64 are taken for members: none in 10^9 questions to 10^7.

    Args:
        strings: the members.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._hashes = np.unique(_hashes(strings))

    def contains(self, strings: Sequence[str]) -> np.ndarray:
        """[S] bool."""
        hashes = _hashes(strings)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return self._hashes[places] == hashes if len(self._hashes) else np.zeros(len(strings), bool)


def _hashes(strings: Sequence[str]) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(string.encode()) for string in strings], np.uint64)
