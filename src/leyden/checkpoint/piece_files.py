"""Files of tensor pieces: one safetensors file a rank, and ``tensors.json``, which says what is in them.

DCP's own safetensors storage gives a tensor one rectangle a file, and takes for its shape what the rectangles reach to;
a rank may hold several (gate and up halves of its experts), and a lost one must not pass for a smaller tensor.
"""

import dataclasses
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
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

from leyden.checkpoint.piece_index import DTYPES, INDEX_FILE, SavedTensor, StoredPiece, write_index
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.errors import UserError


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
        write_index(path, index)
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
            properties = TensorProperties(dtype=DTYPES[stored.dtype])
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
                if tensor.dtype != DTYPES[stored.dtype]:
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
