"""The weights of a training checkpoint, as the files of a model: its float32 masters, put together from the ranks'."""

from collections.abc import Iterator
from pathlib import Path

import torch

from leyden.checkpoint.piece_index import INDEX_FILE, read_index
from leyden.checkpoint.tensor_files import StoredTensor, TensorFiles, cut

_MASTER = "master."
_BLOCK_ELEMENTS = 1 << 20
_DTYPES = {"float32": "F32", "float64": "F64"}


class MasterFiles(TensorFiles):
    """By the names of our parameters; what one rank wrote whole is mapped, the rest is joined when it is asked for.

    Args:
        directory: of a checkpoint, as :mod:`leyden.checkpoint.training` writes it.
    """

    def __init__(self, directory: Path) -> None:
        index = read_index(directory)
        self._masters = {name.removeprefix(_MASTER): t for name, t in index.items() if name.startswith(_MASTER)}
        super().__init__(directory)
        pieces = self._pieces = self.stored
        self.stored = {
            name: StoredTensor(
                file=directory / INDEX_FILE,
                dtype=_DTYPES.get(tensor.dtype, tensor.dtype),
                shape=tensor.shape,
                start=0,
                complete=all(pieces[piece.key(_MASTER + name, tensor.shape)].complete for piece in tensor.pieces),
            )
            for name, tensor in self._masters.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._masters[name]
        found = [
            (piece, self._open[self.directory / piece.file].get_tensor(piece.key(_MASTER + name, tensor.shape)))
            for piece in tensor.pieces
        ]
        if len(found) == 1:
            return found[0][1]
        whole = torch.empty(tensor.shape, dtype=found[0][1].dtype)
        for piece, values in found:
            whole[tuple(slice(at, at + size) for at, size in zip(piece.start, piece.sizes, strict=True))] = values
        return whole

    def read(self, name: str, first: int, last: int) -> torch.Tensor:
        """See :meth:`TensorFiles.read`; of each piece, its rows among these are read."""
        tensor = self._masters[name]
        wanted = torch.empty(last - first, *tensor.shape[1:], dtype=self.dtype(name))
        for piece in tensor.pieces:
            low, high = max(first, piece.start[0]), min(last, piece.start[0] + piece.sizes[0])
            if low < high:
                key = piece.key(_MASTER + name, tensor.shape)
                rows = self._read(cut(self._pieces[key], low - piece.start[0], high - piece.start[0]), key)
                others = zip(piece.start[1:], piece.sizes[1:], strict=True)
                wanted[(slice(low - first, high - first), *(slice(at, at + size) for at, size in others))] = rows
        return wanted

    def read_rows(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of a tensor, some MB at a time: [rows, columns] of its last dim."""
        rows = self[name].flatten(0, -2)
        yield from rows.split(max(1, _BLOCK_ELEMENTS // rows.shape[-1]))

    def _files(self) -> list[Path]:
        return sorted({self.directory / piece.file for tensor in self._masters.values() for piece in tensor.pieces})
