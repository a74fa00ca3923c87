"""Where the pieces of tensors lie: one safetensors file a rank, and ``tensors.json``, which says what is in them.

DCP's own safetensors storage gives a tensor one rectangle a file, and takes for its shape what the rectangles reach to;
a rank may hold several (gate and up halves of its experts), and a lost one must not pass for a smaller tensor.
"""

import dataclasses
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.config import Config

INDEX_FILE = "tensors.json"


class StoredPiece(Config):
    """A rectangle of a tensor."""

    file: str
    start: tuple[int, ...]
    """Where it begins in the whole tensor."""
    sizes: tuple[int, ...]

    def key(self, name: str, shape: tuple[int, ...]) -> str:
        """What the file calls it: the tensor's name, if it is all of it."""
        if self.sizes == shape:
            return name
        return f"{name}[{', '.join(f'{at}:{at + size}' for at, size in zip(self.start, self.sizes, strict=True))}]"


class StoredTensor(Config):
    """A tensor as it was saved."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredPiece, ...]


_index = TypeAdapter(dict[str, StoredTensor])


def read_index(directory: Path) -> dict[str, StoredTensor]:
    """What the files of ``directory`` hold, by name."""
    return _index.validate_json((directory / INDEX_FILE).read_bytes())


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
            index[name] = StoredTensor(dtype=dtype, shape=tuple(item.size), pieces=tuple(pieces[name]))
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
    """DCP's way to read: what a rank needs, and no more."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._index: dict[str, StoredTensor] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, in DCP's terms."""
        self._index = read_index(self._directory)
        found = {}
        for name, stored in self._index.items():
            chunks = [ChunkStorageMetadata(torch.Size(p.start), torch.Size(p.sizes)) for p in stored.pieces]
            properties = TensorProperties(dtype=getattr(torch, stored.dtype))
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
            with safe_open(self._directory / file, framework="pt") as tensors:
                for item, key in items:
                    bounds = zip(item.storage_offsets, item.lengths, strict=True)
                    there = tuple(slice(start, start + length) for start, length in bounds)
                    target = planner.resolve_tensor(item)
                    target.copy_(tensors.get_slice(key)[there] if there else tensors.get_tensor(key))
                    planner.commit_tensor(item, target)
        return _done(None)

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
