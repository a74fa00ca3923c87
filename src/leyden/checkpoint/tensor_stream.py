"""A safetensors file written as its tensors come, none of them kept: what is written is what is in memory."""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
"""The format's names."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Described = tuple[str, torch.dtype, tuple[int, ...]]
"""A tensor's name, dtype and shape."""


class TensorStream:
    """A file whose tensors are known beforehand and whose contents are appended in that order.

    Args:
        path: of the file.
        tensors: in the order of their contents, wider dtypes first, so that each begins at a multiple of its width.
        metadata: what else the header says.
    """

    def __init__(
        self, path: Path, tensors: Iterable[Described], metadata: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        end = 0
        for name, dtype, shape in tensors:
            start, end = end, end + math.prod(shape) * dtype.itemsize
            if start % dtype.itemsize:
                raise ValueError(f"{name} of {dtype} begins at byte {start}; wider dtypes come first.")
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        self._left_bytes = end
        self._stream = path.open("wb")
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._stream.write(struct.pack("<Q", len(text)) + text)

    def append(self, tensor: torch.Tensor) -> None:
        """Write the next contents: a tensor, or the next rows of one."""
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        self._stream.write(flat.numpy().data)
        self._left_bytes -= flat.numel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._stream:
            if kind is None:
                if self._left_bytes:
                    raise ValueError(f"{self._stream.name} lacks {self._left_bytes} bytes of its tensors.")
                self._stream.flush()
                os.fsync(self._stream.fileno())
