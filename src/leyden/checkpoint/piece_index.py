"""The index of files of tensor pieces, ``tensors.json``: which rectangles of which tensor are in which file.

It is read by itself where only facts of a checkpoint are asked for: torch.distributed.checkpoint, by which
:mod:`leyden.checkpoint.piece_files` reads and writes the pieces, takes a second to import.
"""

import math
from pathlib import Path

import numpy as np
import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from leyden.checkpoint.tensor_files import is_plain_name
from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import read_text

INDEX_FILE = "tensors.json"
_MAX_INDEX_BYTES = 1 << 30
_MAX_CELLS = 1 << 22
"""Of the grid that the pieces of one tensor cut it into."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
"""By the names that the index has for them."""


class StoredPiece(Config):
    """A rectangle of a tensor."""

    file: str
    start: tuple[NonNegativeInt, ...]
    """Where it begins in the whole tensor."""
    sizes: tuple[NonNegativeInt, ...]

    def key(self, name: str, shape: tuple[int, ...]) -> str:
        """What the file calls it: the tensor's name, if it is all of it."""
        if self.sizes == shape:
            return name
        return f"{name}[{', '.join(f'{at}:{at + size}' for at, size in zip(self.start, self.sizes, strict=True))}]"


class SavedTensor(Config):
    """A tensor as it was saved."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    pieces: tuple[StoredPiece, ...]

    def problem(self) -> str | None:
        """What makes it no tensor in pieces: an unknown dtype, a file elsewhere, pieces that do not cover it once."""
        if self.dtype not in DTYPES:
            return f"the dtype '{self.dtype}' is none of PyTorch's"
        outside = next((piece.file for piece in self.pieces if not is_plain_name(piece.file)), None)
        if outside is not None:
            return f"{outside!r} is no file of the checkpoint"
        rank = len(self.shape)
        if any(len(piece.start) != rank or len(piece.sizes) != rank for piece in self.pieces):
            return "a piece has another number of dims"
        return None if self._covered_once() else "its pieces do not cover it, each element once"

    def _covered_once(self) -> bool:
        """Whether every element lies in exactly one piece: counted on the grid of all their bounds."""
        if sum(math.prod(piece.sizes) for piece in self.pieces) != math.prod(self.shape):
            return False
        filled = [
            (piece, [at + size for at, size in zip(piece.start, piece.sizes, strict=True)])
            for piece in self.pieces
            if 0 not in piece.sizes
        ]
        if any(at > size for _, end in filled for at, size in zip(end, self.shape, strict=True)):
            return False
        bounds = []
        for dim in range(len(self.shape)):
            of_dim = {0} | {piece.start[dim] for piece, _ in filled} | {end[dim] for _, end in filled}
            bounds.append({bound: number for number, bound in enumerate(sorted(of_dim))})
        cells = [len(of_dim) - 1 for of_dim in bounds]
        if not filled or math.prod(cells) > _MAX_CELLS:
            return not filled
        counts = np.zeros(cells, np.int32)
        for piece, end in filled:
            spans = zip(bounds, piece.start, end, strict=True)
            counts[tuple(slice(of_dim[first], of_dim[last]) for of_dim, first, last in spans)] += 1
        return bool((counts == 1).all())


_index = TypeAdapter(dict[str, SavedTensor])


def read_index(directory: Path) -> dict[str, SavedTensor]:
    """What the files of ``directory`` hold, by name; nothing that the index says is believed before it is checked.

    Raises:
        UserError: the index is missing, damaged, or does not describe whole tensors in files of ``directory``.
    """
    path = directory / INDEX_FILE
    try:
        found = _index.validate_json(read_text(path, _MAX_INDEX_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the checkpoint is not whole.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{path} is damaged: {'.'.join(map(str, problem['loc'])) or 'it'}: {problem['msg']}.") from None
    for name, stored in found.items():
        if (problem := stored.problem()) is not None:
            raise UserError(f"{path} is damaged: {name}: {problem}.")
    files = {piece.file for stored in found.values() for piece in stored.pieces}
    absent = sorted(file for file in files if not (directory / file).is_file())
    if absent:
        raise UserError(f"{path} names files that are not there: {', '.join(absent[:4])}.")
    return found


def write_index(path: Path, index: dict[str, SavedTensor]) -> None:
    """Write what :func:`read_index` reads."""
    path.write_bytes(_index.dump_json(index))
