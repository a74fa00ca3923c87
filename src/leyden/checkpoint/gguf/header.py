"""The header of a GGUF file (ggml, docs/gguf.md, versions 2 and 3, little-endian): its keys, and where tensors lie.

The file may be anybody's: every length in it is compared with what is left of the file before it is used.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leyden.core.errors import UserError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
"""Types of values, by their numbers."""
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_TYPES = {
    0: "F32",
    1: "F16",
    28: "F64",
    30: "BF16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    39: "MXFP4",
}
"""Types of tensors, by their numbers; others there are, which no weight of Leyden's has."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        kind: the format's name of its type, as ``"BF16"``.
        shape: of the last dim, the elements lie together.
        start: the byte of the file at which its elements begin.
    """

    kind: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself.

    Attributes:
        path: of the file.
        keys: their values: numbers, truths, strings, and lists of these.
        tensors: by name.
        content: the whole file, mapped; what is written to it stays in memory.
    """

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, GgufTensor]
    content: mmap.mmap


def read_header(path: Path) -> GgufHeader:
    """The header of ``path``; the weights are mapped, and not read.

    Raises:
        UserError: no GGUF file, one of another version, or one that is damaged or ends within its header.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # a ValueError for a file without a byte
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    cursor = _Cursor(content)
    try:
        _check_start(path, cursor)
        num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
        keys = {cursor.string(): cursor.value(cursor.number("I")) for _ in range(num_keys)}
        tensors = {cursor.string(): cursor.tensor() for _ in range(num_tensors)}
        if len(tensors) != num_tensors or len(keys) != num_keys:
            raise ValueError("a name stands there twice")
        begin = _aligned(cursor.at, keys.get("general.alignment", 32))
    except (struct.error, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{path} is a damaged GGUF file, or ends too early ({error}); write it or fetch it again."
        ) from None
    placed = {name: GgufTensor(one.kind, one.shape, begin + one.start) for name, one in tensors.items()}
    return GgufHeader(path, keys, placed, content)


def _check_start(path: Path, cursor: "_Cursor") -> None:
    magic, version = cursor.take(4), cursor.number("I")
    if magic != _MAGIC:
        raise UserError(f"{path} is no GGUF file: it begins with {magic!r}, where those begin with {_MAGIC!r}.")
    if version not in _VERSIONS:
        raise UserError(
            f"{path} is GGUF of version {version}, and Leyden reads {' and '.join(map(str, _VERSIONS))}, "
            "little-endian; write the file by a current llama.cpp, or by leyden convert."
        )


def _aligned(place: int, alignment: int) -> int:
    return place + -place % alignment


class _Cursor:
    """Reads on and on from a place."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self.at:
            raise ValueError(f"{count:,} bytes are to follow byte {self.at:,}, and the file has {len(self._content):,}")
        self.at += count
        return self._content[self.at - count : self.at]

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0]
        inner, count = self.number("I"), self.number("Q")
        if inner == _ARRAY:
            raise ValueError("a list of lists, which no key of a model has")
        return [self.string() for _ in range(count)] if inner == _STRING else self._numbers(inner, count)

    def _numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"a value of the type {kind}, which the format has not")
        dtype = np.dtype(_SCALARS[kind])
        found = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        # The shortest decimals that round to what is stored: 1e-05, where a float64 of it would be 9.99999975e-06.
        return [float(str(np.float32(one))) for one in found] if kind == 6 else found

    def tensor(self) -> GgufTensor:
        num_dims = self.number("I")
        if num_dims > _MAX_DIMS:
            raise ValueError(f"a tensor of {num_dims} dims, and the format has {_MAX_DIMS} at most")
        dims = [self.number("Q") for _ in range(num_dims)]
        kind, start = self.number("I"), self.number("Q")
        if 0 in dims or math.prod(dims) > 1 << 60 or start > 1 << 60:
            raise ValueError(f"a tensor of {dims} elements at {start}")
        return GgufTensor(_TYPES.get(kind, f"ggml type {kind}"), tuple(reversed(dims)), start)
