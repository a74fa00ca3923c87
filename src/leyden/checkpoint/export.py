"""Export of a sharded model to a model directory, without any rank holding the whole model.

Every file has one rank that writes it, and its tensors come to that rank a block at a time: a tensor of the file, or
one expert of a stacked one. As many files are written at once as there are ranks, and a rank has one block in memory.
The result is what :func:`leyden.checkpoint.save` writes of the whole model.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leyden.checkpoint.coordinator import Coordinator, coordinator_of
from leyden.checkpoint.layouts import Derived, Layout, layout_named
from leyden.checkpoint.model_directory import bindings_of, check_fit, narrowed, note_files, refuse_to_replace_others
from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.rules import Binding
from leyden.checkpoint.shard_index import Rectangle, ShardIndex
from leyden.checkpoint.tensor_files import SHARD_BYTES, shard_name, write_index, write_json
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.files import disk_errors_are_user_errors
from leyden.model import ModelConfig
from leyden.parallel import Mesh
from leyden.tokenizer import Tokenizer


def export(
    weights: Mapping[str, TensorPiece],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    directory: str | Path,
    layout: str = "leyden",
    *,
    mesh: Mesh | None = None,
    dtype: torch.dtype | None = None,
    file_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model of which the ranks hold ``weights``; an older model in ``directory`` is replaced.

    Args:
        weights: what this rank holds, by name, in one dtype; all ranks call this at the same point.
        config: of the model.
        tokenizer: None to write none.
        directory: where to; all ranks see it.
        layout: ``"leyden"``, ``"transformers"`` or ``"minimax"``.
        mesh: of the ranks; None: one process.
        dtype: of the matrices in the files, norms and routers staying float32 or wider; None: that of ``weights``.
        file_bytes: a file is no larger, unless one tensor is.

    Raises:
        UserError: on all ranks: the layout cannot express the model, ``directory`` holds something that is no model, or
            the disk is full.
    """
    coordinator, kind, directory = coordinator_of(mesh), layout_named(layout), Path(directory)
    dtype = dtype or next(iter(weights.values())).tensor.dtype
    settings = kind.write_config(config, dtype, tokenizer)

    def check() -> None:
        check_fit(config, tokenizer, "the model to save")
        refuse_to_replace_others(directory)

    coordinator.on_rank_0(check)
    tensors = [
        *_bound(weights, config, kind, dtype, coordinator),
        *map(_Tensor.derived, kind.derived(config, settings)),
    ]
    files = _divide(tensors, file_bytes)
    shards = ShardIndex(weights, coordinator)
    shards.check({tensor.binding.ours: tensor.binding.shape for tensor in tensors if tensor.binding is not None})

    def describe(part: Path) -> None:
        with disk_errors_are_user_errors(directory):
            write_json(part / "config.json", settings)
            write_index(part, [[tensor.name for tensor in file] for file in files], sum(t.num_bytes for t in tensors))
            if tokenizer is not None:
                tokenizer.save(part)
            note_files(part)

    with coordinator.directory(directory) as part:
        names = [part / shard_name(index, len(files)) for index in range(len(files))]
        for first in range(0, len(files), coordinator.size):
            together = slice(first, first + coordinator.size)
            error = _write(names[together], files[together], shards, coordinator)
            coordinator.on_all_ranks(lambda error=error: _raise(error, directory))
        coordinator.on_rank_0(lambda: describe(part))


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a file.

    Attributes:
        name, dtype, shape: as the file says.
        blocks: what it is made of, in order: rectangles of the weight of ``binding``, or a value.
        binding: None for a tensor that is no weight.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Sequence[Rectangle | Derived]
    binding: Binding | None = None

    @classmethod
    def derived(cls, item: Derived) -> "_Tensor":
        """A tensor that follows from the model's shape."""
        return cls(item.name, torch.float32, item.shape, [item])

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def block(self, block: Rectangle | Derived, shards: ShardIndex, to: int, is_mine: bool) -> torch.Tensor | None:
        """One of ``blocks``, on rank ``to``; None on the others. All ranks call this."""
        if self.binding is None:
            assert isinstance(block, Derived), "no weight"
            return block.make() if is_mine else None
        assert isinstance(block, Rectangle), "of a weight"
        found = shards.gather(self.binding.ours, block, to, self.dtype)
        return found if found is None or len(self.binding.theirs) > 1 else self.binding.split(found)[0]


def _bound(
    weights: Mapping[str, TensorPiece],
    config: ModelConfig,
    layout: Layout,
    dtype: torch.dtype,
    coordinator: Coordinator,
) -> Iterator[_Tensor]:
    """The tensors that weights make, in the layout's order."""
    bindings, float32 = bindings_of(layout, config)
    wide, survivors = torch.promote_types(dtype, torch.float32), set[str]()
    if layout.narrows and dtype != wide:
        own = {n: narrowed(weights[n].tensor.to(wide), dtype).dtype == dtype for n in float32 if n in weights}
        everyone = coordinator.on_all_ranks(lambda: own)
        survivors = {name for name in float32 if all(of_rank.get(name, True) for of_rank in everyone)}
    for binding in bindings:
        of_file = wide if binding.ours in float32 - survivors else dtype
        for name, blocks in zip(binding.theirs, _rectangles(binding), strict=True):
            yield _Tensor(name, of_file, binding.part_shape, blocks, binding)


def _rectangles(binding: Binding) -> Iterator[list[Rectangle]]:
    """For each tensor of the file, what it takes of our weight: rows, or the stacked experts one by one."""
    shape, count = binding.shape, len(binding.theirs)
    if count == 1:
        stacked = len(shape) == 3
        yield [Rectangle((e, 0, 0), (1, *shape[1:])) for e in range(shape[0])] if stacked else [Rectangle.whole(shape)]
        return
    *outer, rows, columns = shape
    num_rows = math.prod(outer) * rows // count
    for at in range(0, math.prod(outer) * rows, num_rows):
        yield [Rectangle((*([at // rows] * len(outer)), at % rows, 0), (*([1] * len(outer)), num_rows, columns))]


def _divide(tensors: Sequence[_Tensor], file_bytes: int) -> list[list[_Tensor]]:
    """In order, into files; within a file wider dtypes come first."""
    files: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if files[-1] and filled + tensor.num_bytes > file_bytes:
            files.append([])
            filled = 0
        files[-1].append(tensor)
        filled += tensor.num_bytes
    return [sorted(file, key=lambda tensor: -tensor.dtype.itemsize) for file in files]


def _write(
    paths: Sequence[Path], files: Sequence[list[_Tensor]], shards: ShardIndex, coordinator: Coordinator
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
                    found = tensor.block(block, shards, to, is_mine=to == coordinator.rank)
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
    for _ in mine:
        pass
    return error


def _raise(error: Exception | None, directory: Path) -> None:
    if error is not None:
        with disk_errors_are_user_errors(directory):
            raise error
