"""Checksums of blocks of files: memory-mapped files are compared with them a block at a time, when it is first read.

So opening need not read everything, and nothing is used that is not what was written. What it costs is CRC-32 (4 GB a
second and core) over each block once a process.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leyden.core.errors import UserError


def checksums(path: Path, block_bytes: int) -> tuple[int, ...]:
    """CRC-32 of each block of a file."""
    with path.open("rb") as file:
        return tuple(zlib.crc32(block) for block in iter(lambda: file.read(block_bytes), b""))


def check_blocks(path: Path, sums: Sequence[int], block_bytes: int, blocks: set[int]) -> None:
    """Read some blocks of a file and compare them.

    Raises:
        UserError: one is not what was written.
    """
    if not path.is_file():
        raise damaged(path, "it is not there")
    with path.open("rb") as file:
        for block in sorted(blocks):
            file.seek(block * block_bytes)
            if zlib.crc32(file.read(block_bytes)) != sums[block]:
                raise damaged(path, f"bytes from {block * block_bytes} on are not what was written")


def damaged(path: Path, what: str) -> UserError:
    """The error of a damaged file of a folder that can be made again."""
    return UserError(f"{path} is damaged: {what}. Delete {path.parent} and build the token shards again.")


class FirstReads:
    """Mapped files whose blocks are compared when they are first read.

    Args:
        paths: of the files, for messages.
        arrays: the files, mapped; None where there is none.
        sums: the checksums of each; none where there is no file.
        block_bytes: of a block.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        arrays: Sequence[np.ndarray | None],
        sums: Sequence[Sequence[int]],
        block_bytes: int,
    ) -> None:
        self._paths = paths
        self._bytes = [None if array is None else array.view(np.uint8) for array in arrays]
        self._sums = np.array([one for of_file in sums for one in of_file], np.uint32)
        self._first = np.cumsum([0, *map(len, sums)])  # the number of each file's first block among all
        self._block_bytes = block_bytes
        self._unread = np.ones(len(self._sums), bool)

    def check(self, files: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        """Compare the blocks of some pieces that have not been read before.

        Args:
            files: [P] int64, the file of each piece.
            begins, ends: [P] int64, where it lies in it, in bytes; none is empty.

        Raises:
            UserError: a block is not what was written.
        """
        first = self._first[files] + begins // self._block_bytes
        last = self._first[files] + (ends - 1) // self._block_bytes
        # A piece of more than two blocks is looked at in any case; that is dear for no piece so long.
        new = self._unread[first] | self._unread[last] | (last > first + 1)
        for begin, end in zip(first[new].tolist(), (last[new] + 1).tolist(), strict=True):
            for block in np.flatnonzero(self._unread[begin:end]).tolist():
                self._compare(begin + block)

    def _compare(self, block: int) -> None:
        file = int(np.searchsorted(self._first, block, side="right")) - 1
        content = self._bytes[file]
        assert content is not None, "a file that has pieces"
        begin = (block - int(self._first[file])) * self._block_bytes
        if zlib.crc32(content[begin : begin + self._block_bytes].data) != self._sums[block]:
            raise damaged(self._paths[file], f"bytes from {begin} on are not what was written")
        self._unread[block] = False
