"""Sharded saving and loading by torch.distributed.checkpoint: saved under one plan, loaded under another.

DCP decides which rank writes what several hold, sees to it that nothing of a tensor is missing, and finds what to read
where a rank holds other rectangles than were written. Where the bytes lie is :mod:`leyden.checkpoint.piece_files`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from leyden.checkpoint.coordinator import Coordinator
from leyden.checkpoint.piece_files import PieceReader, PieceWriter
from leyden.checkpoint.piece_index import read_index
from leyden.parallel import Part


@dataclass(frozen=True, eq=False)
class TensorPiece:
    """What a rank holds of a tensor.

    Attributes:
        tensor: the rank's, in memory that loading writes into.
        part: of the whole tensor.
    """

    tensor: torch.Tensor
    part: Part

    def __post_init__(self) -> None:
        if tuple(self.tensor.shape) != self.part.local_shape:
            raise ValueError(f"a tensor of shape {list(self.tensor.shape)} cannot be the part {self.part}")

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> "TensorPiece":
        """All of a tensor."""
        return cls(tensor.detach(), Part.whole(tuple(tensor.shape)))

    def chunks(self) -> dict[tuple[int, ...], torch.Tensor]:
        """The rectangles, views of the rank's tensor, by where they begin in the whole."""
        return {box.whole: box.of(self.tensor) for box in self.part.boxes()}

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        """How DCP asks what there is to write."""
        properties = TensorProperties.create_from_tensor(self.tensor)
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, torch.Size(self.part.shape)),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """How DCP asks what there is to read."""
        return [ChunkStorageMetadata(torch.Size(start), chunk.shape) for start, chunk in self.chunks().items()]


def save_pieces(directory: Path, pieces: Mapping[str, TensorPiece], coordinator: Coordinator) -> list[Path]:
    """Write what all ranks hold, each box once; all ranks call this with the same directory.

    Returns:
        The files that this rank wrote.

    Raises:
        Exception: what one rank failed at, on all ranks.
    """
    writer, planner = PieceWriter(directory), _SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with _quietly():
            save(
                dict(pieces),
                storage_writer=writer,
                planner=planner,
                process_group=coordinator.group,
                no_dist=coordinator.size == 1,
            )
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from None
    return writer.written


def load_pieces(directory: Path, pieces: Mapping[str, TensorPiece]) -> None:
    """Fill ``pieces`` in place with what was saved under the same names; a rank reads what it needs by itself.

    Raises:
        UserError: what was saved is damaged.
    """
    reader, planner = PieceReader(directory, read_index(directory)), _LoadPlanner()
    try:
        with _quietly():
            load(dict(pieces), storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from None


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None, "pieces have a place"
        return self.state_dict[index.fqn].chunks()[tuple(index.offset)]


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator
        self.flatten_state_dict = False

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None, "pieces have a place"
        return self.state_dict[index.fqn].chunks()[tuple(index.offset)]


@contextmanager
def _quietly() -> Iterator[None]:
    """DCP warns that it assumes a single process even where ``no_dist`` said so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def gather_whole(pieces: Mapping[str, TensorPiece], coordinator: Coordinator) -> dict[str, torch.Tensor]:
    """Small tensors, whole, on rank 0, by name in order; nothing on the others. All ranks call this at the same point.

    Args:
        pieces: what this rank has of them; together the ranks have all of each, once.
        coordinator: of the ranks.
    """
    own = [(name, piece.part, piece.tensor.detach().cpu()) for name, piece in pieces.items()]
    everyone: list[Any] = [own] if coordinator.group is None else [None] * coordinator.size
    if coordinator.group is not None:
        dist.gather_object(own, everyone if coordinator.rank == 0 else None, group=coordinator.group)
    whole: dict[str, torch.Tensor] = {}
    for name, part, tensor in (each for of_rank in everyone if of_rank is not None for each in of_rank):
        target = whole.setdefault(name, torch.empty(part.shape, dtype=tensor.dtype))
        for box in part.boxes():
            place = tuple(slice(start, start + size) for start, size in zip(box.whole, box.sizes, strict=True))
            target[place] = box.of(tensor)
    return dict(sorted(whole.items()))
