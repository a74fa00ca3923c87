"""A model directory written block by block, so that nobody holds the whole model.

Every file has one rank that writes it, and its tensors come to that rank a block at a time: a tensor of the file, or
one expert of a stacked one. As many files are written at once as there are ranks, and a rank has one block in memory.
Where the blocks come from is for the caller to say: :mod:`leyden.checkpoint.export` gathers them from the ranks that
hold them, :mod:`leyden.checkpoint.soup` averages those of several models.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from leyden.checkpoint.coordinator import ALONE, Coordinator
from leyden.checkpoint.layouts import Derived, Layout
from leyden.checkpoint.model_place import note_files
from leyden.checkpoint.rules import Binding, order_rows, shapes_of_tensors, whole_name
from leyden.checkpoint.shard_index import Rectangle
from leyden.checkpoint.stored_model import bindings_of
from leyden.checkpoint.tensor_files import SHARD_BYTES, shard_name, write_index, write_json
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.files import disk_errors_are_user_errors
from leyden.model import ModelConfig
from leyden.tokenizer import Tokenizer


class Blocks(Protocol):
    """Gives the blocks of a model's weights."""

    def gather(self, name: str, wanted: Rectangle, to: int, dtype: torch.dtype) -> torch.Tensor | None:
        """``wanted`` of the weight ``name`` in ``dtype`` and host memory, on rank ``to``; None on the others."""
        ...


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file.

    Attributes:
        name, dtype, shape: as the file says.
        blocks: what it is made of, in order: rectangles of weights, or a value.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: "Sequence[OfWeight | Derived]"

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def block(self, block: "OfWeight | Derived", source: Blocks, to: int, is_mine: bool) -> torch.Tensor | None:
        """One of ``blocks``, on rank ``to``; None on the others. All ranks call this."""
        if isinstance(block, Derived):
            return block.make() if is_mine else None
        found = source.gather(block.binding.ours, block.rectangle, to, self.dtype)
        return found if found is None or len(block.binding.theirs) > 1 else block.binding.split(found)[0]


@dataclass(frozen=True)
class OfWeight:
    """A block of a weight.

    Attributes:
        binding: of the weight.
        rectangle: of it.
    """

    binding: Binding
    rectangle: Rectangle


def file_tensors(
    config: ModelConfig, layout: Layout, settings: Mapping[str, Any], dtype: torch.dtype, narrow: set[str]
) -> list[FileTensor]:
    """The tensors of a model's files, in the layout's order.

    Args:
        config: of the model.
        layout: in which it is written.
        settings: config.json.
        dtype: of the matrices; norms and routers are float32 or wider.
        narrow: the norms and routers, by our names, that are written in ``dtype`` as well.
    """
    bindings, float32 = bindings_of(layout, config)
    wide = torch.promote_types(dtype, torch.float32)
    shapes, dtypes, blocks = shapes_of_tensors(bindings), dict[str, torch.dtype](), dict[str, list[OfWeight]]()
    for binding in bindings:
        for part, rectangles in zip(binding.theirs, _rectangles(binding), strict=True):
            name = whole_name(part)
            dtypes[name] = wide if binding.ours in float32 - narrow else dtype
            blocks.setdefault(name, []).extend(OfWeight(binding, rectangle) for rectangle in rectangles)
    weights = [FileTensor(name, dtypes[name], shapes[name], blocks[name]) for name in blocks]
    derived = layout.derived(config, dict(settings))
    return [*weights, *(FileTensor(item.name, torch.float32, item.shape, [item]) for item in derived)]


def _rectangles(binding: Binding) -> Iterator[list[Rectangle]]:
    """For each tensor of the file, what it takes of our weight: rows, or the stacked experts one by one."""
    shape, count = binding.shape, len(binding.theirs)
    if count == 1:
        stacked = len(shape) == 3
        yield [Rectangle((e, 0, 0), (1, *shape[1:])) for e in range(shape[0])] if stacked else [Rectangle.whole(shape)]
        return
    *outer, rows, columns = shape
    num_rows = math.prod(outer) * rows // count
    if binding.rows is not None:
        ours_of = order_rows(torch.arange(rows)[:, None], binding.rows)
        for ours in ours_of.view(count, -1):
            yield [Rectangle((first, 0), (last - first, columns)) for first, last in _runs(ours.tolist())]
        return
    for at in range(0, math.prod(outer) * rows, num_rows):
        yield [Rectangle((*([at // rows] * len(outer)), at % rows, 0), (*([1] * len(outer)), num_rows, columns))]


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the end of each run of numbers that follow one another."""
    first = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at] != rows[at - 1] + 1:
            yield rows[first], rows[at - 1] + 1
            first = at


def write_files(
    tensors: Sequence[FileTensor],
    source: Blocks,
    directory: Path,
    settings: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    *,
    coordinator: Coordinator = ALONE,
    file_bytes: int = SHARD_BYTES,
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a model directory, whole or not at all; an older model in it is replaced.

    Args:
        tensors: of :func:`file_tensors`.
        source: of their blocks.
        directory: where to; all ranks see it.
        settings: config.json.
        tokenizer: None to write none.
        coordinator: of the ranks, all of which call this at the same point.
        file_bytes: a file is no larger, unless one tensor is.
        notes: further JSON files, by name.

    Raises:
        UserError: on all ranks: the disk is full, or what ``source`` raises.
    """
    files = _divide(tensors, file_bytes)

    def describe(part: Path) -> None:
        with disk_errors_are_user_errors(directory):
            for name, content in {"config.json": settings, **(notes or {})}.items():
                write_json(part / name, content)
            write_index(part, [[tensor.name for tensor in file] for file in files], sum(t.num_bytes for t in tensors))
            if tokenizer is not None:
                tokenizer.save(part)
            note_files(part)

    with coordinator.directory(directory) as part:
        names = [part / shard_name(index, len(files)) for index in range(len(files))]
        for first in range(0, len(files), coordinator.size):
            together = slice(first, first + coordinator.size)
            error = _write(names[together], files[together], source, coordinator)
            coordinator.on_all_ranks(lambda error=error: _raise(error, directory))
        coordinator.on_rank_0(lambda: describe(part))


def _divide(tensors: Sequence[FileTensor], file_bytes: int) -> list[list[FileTensor]]:
    """In order, into files; within a file wider dtypes come first."""
    files: list[list[FileTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if files[-1] and filled + tensor.num_bytes > file_bytes:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += tensor.num_bytes
    return [sorted(file, key=lambda tensor: -tensor.dtype.itemsize) for file in files]


def _write(
    paths: Sequence[Path], files: Sequence[list[FileTensor]], source: Blocks, coordinator: Coordinator
) -> Exception | None:
    """Write file i on rank i, all of them at once; what this rank failed at.

    A rank that cannot write goes on to send and receive: the others wait for it.
    """
    blocks = [[(tensor, block) for tensor in file for block in tensor.blocks] for file in files]

    def arriving() -> Iterator[torch.Tensor]:
        """This rank's, while it takes part in bringing the others theirs."""
        for row in itertools.zip_longest(*blocks):
            for to, item in enumerate(row):
                if item is not None:
                    tensor, block = item
                    found = tensor.block(block, source, to, is_mine=to == coordinator.rank)
                    if found is not None:
                        yield found

    mine = arriving()
    try:
        if coordinator.rank < len(files):
            file = files[coordinator.rank]
            with TensorStream(paths[coordinator.rank], [(t.name, t.dtype, t.shape) for t in file]) as stream:
                for block in mine:
                    stream.append(block)
        error = None
    except Exception as caught:
        error = caught
    if coordinator.size > 1:
        for _ in mine:
            pass
    return error


def _raise(error: Exception | None, directory: Path) -> None:
    if error is not None:
        with disk_errors_are_user_errors(directory):
            raise error
