"""Files of tensor pieces: one safetensors file a rank, and ``tensors.json``, which says what is in them.

DCP's own safetensors storage gives a tensor one rectangle a file, and takes for its shape what the rectangles reach to;
a rank may hold several (gate and up halves of its experts), and a lost one must not pass for a smaller tensor.
"""

import dataclasses
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from leyden.checkpoint.tensor_files import is_plain_name
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import read_text

INDEX_FILE = "tensors.json"
_MAX_INDEX_BYTES = 1 << 30
_MAX_CELLS = 1 << 22
"""Of the grid that the pieces of one tensor cut it into."""
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


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
        if self.dtype not in _DTYPES:
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


class PieceWriter(StorageWriter):
    """DCP's way to write: every rank its file, the first the index.

    Attributes:
        written: the files that this rank wrote.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.written: list[Path] = []

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's rectangles, one in host memory at a time."""
        found = []
        for item in plan.items:
            assert item.tensor_data is not None and item.index.offset is not None, "nothing but tensors is saved"
            data = item.tensor_data
            piece = StoredPiece(file=plan.storage_data, start=tuple(item.index.offset), sizes=tuple(data.chunk.sizes))
            found.append((item, data.properties.dtype, piece, piece.key(item.index.fqn, tuple(data.size))))
        found.sort(key=lambda one: -one[1].itemsize)
        if found:
            path = self._directory / plan.storage_data
            described = [(key, dtype, piece.sizes) for _, dtype, piece, key in found]
            with TensorStream(path, described) as stream:
                for item, *_ in found:
                    tensor = planner.resolve_data(item)
                    assert isinstance(tensor, torch.Tensor), "nothing but tensors is saved"
                    stream.append(tensor)
            self.written.append(path)
        return _done([WriteResult(item.index, 0, piece) for item, _, piece, _ in found])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index."""
        pieces: dict[str, list[StoredPiece]] = defaultdict(list)
        for result in (result for of_rank in results for result in of_rank):
            pieces[result.index.fqn].append(result.storage_data)
        index = {}
        for name, item in metadata.state_dict_metadata.items():
            assert isinstance(item, TensorStorageMetadata), "nothing but tensors is saved"
            dtype = str(item.properties.dtype).removeprefix("torch.")
            index[name] = SavedTensor(dtype=dtype, shape=tuple(item.size), pieces=tuple(pieces[name]))
        path = self._directory / INDEX_FILE
        path.write_bytes(_index.dump_json(index))
        self.written.append(path)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Every rank's file."""
        return [dataclasses.replace(plan, storage_data=f"rank_{r:05d}.safetensors") for r, plan in enumerate(plans)]

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to do."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP does not choose this writer by itself."""
        return False


class PieceReader(StorageReader):
    """DCP's way to read: what a rank needs, and no more.

    Args:
        directory: of the files.
        index: what :func:`read_index` says of them.
    """

    def __init__(self, directory: Path, index: dict[str, SavedTensor]) -> None:
        self._directory = directory
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, in DCP's terms."""
        found = {}
        for name, stored in self._index.items():
            chunks = [ChunkStorageMetadata(torch.Size(p.start), torch.Size(p.sizes)) for p in stored.pieces]
            properties = TensorProperties(dtype=_DTYPES[stored.dtype])
            found[name] = TensorStorageMetadata(properties, torch.Size(stored.shape), chunks)
        return Metadata(found)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what is asked for from the memory-mapped files, one file open at a time."""
        by_file: dict[str, list[tuple[ReadItem, str]]] = defaultdict(list)
        for item in plan.items:
            wanted, stored = item.storage_index, self._index[item.storage_index.fqn]
            assert wanted.index is not None, "DCP numbers what it read in the metadata"
            piece = stored.pieces[wanted.index]
            by_file[piece.file].append((item, piece.key(wanted.fqn, stored.shape)))
        for file, items in by_file.items():
            try:
                self._read_file(self._directory / file, items, planner)
            except SafetensorError as error:
                raise UserError(
                    f"{self._directory / file} is damaged, or not the file of its index: {error}."
                ) from None
        return _done(None)

    def _read_file(self, path: Path, items: list[tuple[ReadItem, str]], planner: LoadPlanner) -> None:
        with safe_open(path, framework="pt") as tensors:
            for item, key in items:
                stored = self._index[item.storage_index.fqn]
                assert item.storage_index.index is not None, "DCP numbers what it read in the metadata"
                sizes = list(stored.pieces[item.storage_index.index].sizes)
                held = tensors.get_slice(key)
                if held.get_shape() != sizes:
                    raise UserError(
                        f"{path} is damaged: {key} is {held.get_shape()} there and {sizes} in {INDEX_FILE}."
                    )
                bounds = zip(item.storage_offsets, item.lengths, strict=True)
                there = tuple(slice(start, start + length) for start, length in bounds)
                tensor = held[there] if there else tensors.get_tensor(key)
                if tensor.dtype != _DTYPES[stored.dtype]:
                    raise UserError(f"{path} is damaged: {key} is {tensor.dtype} there, and not {stored.dtype}.")
                target = planner.resolve_tensor(item)
                target.copy_(tensor)
                planner.commit_tensor(item, target)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to do."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP does not choose this reader by itself."""
        return False


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
