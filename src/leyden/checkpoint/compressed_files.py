"""Weights in 8-bit floats or packed 4-bit integers (compressed-tensors), read as the 16- or 32-bit ones they stand for.

Such a model is stored with ``quantization_config`` in its config.json and, for each matrix ``X.weight`` [F, D]:

- 8-bit floats: ``X.weight`` float8_e4m3fn and ``X.weight_scale``, one scale for all of it ([1]), for each row ([F, 1])
  or for each block of rows and columns ([F / b0, D / b1], rounded up);
- 4-bit integers: ``X.weight_packed`` int32 [F, D / 8, rounded up], number ``8 i + j`` of a row in bits 4 j to 4 j + 3
  of int32 i, less 8; ``X.weight_scale``, one for each row ([F, 1]) or group of columns ([F, D / group]); and
  ``X.weight_shape``.

A weight is its number times its scale, rounded once to the dtype of the scales. That is what the format's own library
decompresses it to. Activations that other engines round on the way stay as they are here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint.tensor_files import StoredTensor, TensorFiles
from leyden.core.errors import UserError

SECTION = "quantization_config"
"""The key of config.json."""

_METHOD = "compressed-tensors"
_KNOWN = (
    "8-bit floats (float-quantized) with one scale a tensor, channel or block, and symmetric 4-bit integers "
    "(pack-quantized) with one scale a channel or group, in the order of the columns"
)
_BLOCK_ELEMENTS = 1 << 20
_PER_WORD = 8
_PARTS = ("weight_packed", "weight_scale", "weight_shape")
_SCALES = ("F32", "BF16", "F16")
_SHAPE_DTYPES = ("I64", "I32")


@dataclass(frozen=True)
class Scheme:
    """How some of the matrices of a model are compressed.

    Attributes:
        bits: 8, of floats, or 4, of integers.
        block: rows and columns that have a scale in common; 0 stands for all there are.
    """

    bits: int
    block: tuple[int, int]

    def scales(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many scales a matrix [F, D] has, by rows and columns."""
        rows, columns = (-(-size // (step or size)) for size, step in zip(shape, self.block, strict=True))
        return rows, columns


def schemes_of(config: Mapping[str, Any], source: str) -> tuple[Scheme, ...]:
    """The schemes that a config.json names; none where its model is not compressed, or not by compressed-tensors.

    Raises:
        UserError: a scheme that Leyden does not read.
    """
    section = config.get(SECTION)
    if not isinstance(section, dict) or section.get("quant_method") != _METHOD:
        return ()
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise UserError(f"{source}: {SECTION} has no config_groups, which say how weights are compressed.")
    if section.get("sparsity_config") or section.get("transform_config"):
        raise UserError(f"{source}: {SECTION} has sparse or transformed weights; Leyden reads {_KNOWN}.")
    return tuple(dict.fromkeys(_scheme(name, group, source) for name, group in groups.items()))


def _scheme(name: str, group: Any, source: str) -> Scheme:
    said: Any = group.get("weights") if isinstance(group, dict) else None
    if isinstance(said, dict) and said.get("symmetric", True) and said.get("actorder") in (None, False):
        match said:
            case {"type": "float", "num_bits": 8, "strategy": "tensor"}:
                return Scheme(8, (0, 0))
            case {"type": "float", "num_bits": 8, "strategy": "channel"}:
                return Scheme(8, (1, 0))
            case {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [int(rows), int(columns)]}:
                if min(rows, columns) > 0:
                    return Scheme(8, (rows, columns))
            case {"type": "int", "num_bits": 4, "strategy": "channel"}:
                return Scheme(4, (1, 0))
            case {"type": "int", "num_bits": 4, "strategy": "group", "group_size": int(size)}:
                if size > 0:
                    return Scheme(4, (1, size))
            case _:
                pass
    raise UserError(
        f"{source}: {SECTION}.config_groups.{name} compresses weights as {said!r}, and Leyden reads {_KNOWN}; take the "
        "model's release in bfloat16, or decompress it with the library that wrote it."
    )


@dataclass(frozen=True)
class _Compressed:
    """One matrix.

    Attributes:
        shape: as a weight.
        values: the name of the tensor that holds its numbers.
        scale: that of its scales.
        scheme: how they belong together.
    """

    shape: tuple[int, int]
    values: str
    scale: str
    scheme: Scheme


class CompressedFiles(TensorFiles):
    """:class:`TensorFiles` of which some tensors are compressed; each is made when it is asked for.

    Args:
        directory: with the files.
        schemes: of its config.json.
    """

    def __init__(self, directory: Path, schemes: tuple[Scheme, ...]) -> None:
        super().__init__(directory)
        self._raw, self._compressed = dict(self.stored), dict[str, _Compressed]()
        for name, tensor in self._raw.items():
            owner, _, leaf = name.rpartition(".")
            packed = leaf == "weight_packed"
            if packed or (leaf == "weight" and tensor.dtype == "F8_E4M3"):
                self._add(f"{owner}.", packed, schemes)

    def _add(self, owner: str, packed: bool, schemes: tuple[Scheme, ...]) -> None:
        """Put the matrix of the module ``owner`` in the place of its parts, or say what is wrong with them."""
        values, scale = owner + ("weight_packed" if packed else "weight"), f"{owner}weight_scale"
        first, second = self._raw[values], self._raw.get(scale)
        shape = self._shape(owner, first) if packed else first.shape
        if second is None or second.dtype not in _SCALES or shape is None or len(shape) != 2:
            needed = f"{scale} in floats" + (f" and a {owner}weight_shape that it has" if packed else "")
            self.problems.append(f"{values} is compressed, and lacks {needed}")
            return
        bits = 4 if packed else 8
        fitting = [one for one in schemes if one.bits == bits and _fits(second.shape, one.scales(shape))]
        if len(fitting) != 1:
            said = "several schemes" if fitting else "no scheme"
            self.problems.append(f"{scale} {list(second.shape)} is of {said} of {SECTION} for {values} {list(shape)}")
            return
        for part in _PARTS:
            self.stored.pop(owner + part, None)
        complete = all(self._raw[owner + part].complete for part in (*_PARTS, "weight") if owner + part in self._raw)
        self._compressed[f"{owner}weight"] = _Compressed((shape[0], shape[1]), values, scale, fitting[0])
        self.stored[f"{owner}weight"] = StoredTensor(first.file, second.dtype, tuple(shape), first.start, complete)

    def _shape(self, owner: str, packed: StoredTensor) -> tuple[int, ...] | None:
        """That of a packed matrix; None where what says it is not there, or is not that of what is packed."""
        said = self._raw.get(f"{owner}weight_shape")
        if said is None or not said.complete or said.file not in self._open:
            return None
        if said.shape != (2,) or said.dtype not in _SHAPE_DTYPES or packed.dtype != "I32":
            return None
        shape = tuple(self._tensor(f"{owner}weight_shape").tolist())
        return shape if packed.shape == (shape[0], -(-shape[1] // _PER_WORD)) and min(shape) > 0 else None

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.rows(name, 0, self.stored[name].shape[0]) if self._is_made(name) else super().__getitem__(name)

    def _is_made(self, name: str) -> bool:
        """Whether the tensor, or the one that it is a part of, is compressed."""
        return self._parts.get(name, (name,))[0] in self._compressed

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """See :meth:`TensorFiles.rows`."""
        if not self._is_made(name):
            return super().rows(name, first, last)
        name, before, _ = self._parts.get(name, (name, 0, 0))
        first, last, matrix = first + before, last + before, self._compressed[name]
        values, scale = self._tensor(matrix.values)[first:last], self._tensor(matrix.scale)
        numbers = unpacked(values, matrix.shape[1]) if matrix.scheme.bits == 4 else values.float()
        return scaled(numbers, scale.view(matrix.scheme.scales(matrix.shape)), matrix.scheme, first)

    def read(self, name: str, first: int, last: int) -> torch.Tensor:
        """See :meth:`TensorFiles.read`."""
        return self.rows(name, first, last) if self._is_made(name) else super().read(name, first, last)

    def read_rows(self, name: str) -> Iterator[torch.Tensor]:
        """See :meth:`TensorFiles.read_rows`."""
        if not self._is_made(name):
            yield from super().read_rows(name)
            return
        rows, columns = self.stored[name].shape
        step = max(1, _BLOCK_ELEMENTS // columns)
        for first in range(0, rows, step):
            yield self.rows(name, first, min(rows, first + step))

    def _tensor(self, name: str) -> torch.Tensor:
        """As it is stored."""
        return self._open[self._raw[name].file].get_tensor(name)


def tensor_files(directory: Path, config: Mapping[str, Any]) -> TensorFiles:
    """The files of a model, of which some tensors may be compressed.

    Args:
        directory: with them.
        config: the content of its config.json.

    Raises:
        UserError: no files, or a scheme that Leyden does not read.
    """
    schemes = schemes_of(config, str(directory / "config.json"))
    return CompressedFiles(directory, schemes) if schemes else TensorFiles(directory)


def _fits(stored: tuple[int, ...], scales: tuple[int, int]) -> bool:
    """Whether scales are stored in this shape; one for all may have any number of dims."""
    return stored == scales or (scales == (1, 1) and all(size == 1 for size in stored))


def unpacked(words: torch.Tensor, columns: int) -> torch.Tensor:
    """int32 [F, W] to the 4-bit integers that they hold, -8 to 7, float32 [F, columns]."""
    shifts = torch.arange(_PER_WORD, dtype=torch.int32, device=words.device) * 4
    numbers = (words.unsqueeze(-1) >> shifts) & 15
    return numbers.flatten(1)[:, :columns].float() - 8


def scaled(numbers: torch.Tensor, scale: torch.Tensor, scheme: Scheme, first: int) -> torch.Tensor:
    """Numbers times their scales, each product rounded once.

    Args:
        numbers: [rows, D] float32, of a matrix whose row ``first`` is their first.
        scale: [., .] of the whole matrix, in the dtype of the result.
        scheme: says which number has which scale.
        first: see ``numbers``.
    """
    (rows, columns), (by_rows, by_columns) = numbers.shape, scheme.block
    row = torch.arange(first, first + rows, device=scale.device) // by_rows if by_rows else torch.zeros(rows).long()
    wide = scale[row].float()
    if by_columns:
        wide = wide.repeat_interleave(by_columns, dim=1)[:, :columns]
    return (numbers * wide).to(scale.dtype)
