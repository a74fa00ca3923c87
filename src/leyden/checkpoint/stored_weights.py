"""The weights of a model on disk: made of the file's tensors when they are asked for, or all of them into a model.

What a file holds as the model wants it is mapped, and costs nothing until it is used. What has to be joined, cast,
moved or rounded to 8 bits is made by several threads, one tensor each, so that a disk or a network is kept busy.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from leyden.checkpoint.int8 import read_in_8_bits
from leyden.checkpoint.rules import Binding
from leyden.checkpoint.tensor_files import TensorFiles, UnmappedFiles
from leyden.core.device import free_bytes
from leyden.core.errors import UserError
from leyden.core.log import progress
from leyden.model import HybridLM, ModelConfig, quantize
from leyden.model.quantized import Int8, scale_of, tie
from leyden.parallel.mesh import Mesh
from leyden.parallel.part import Part
from leyden.parallel.serving import divide
from leyden.parallel.weights import part_of

_MOST_THREADS = 8
_SHOWN_BYTES = 1 << 30
"""To read at least, for a progress bar to be of use."""


class StoredWeights(Mapping[str, torch.Tensor]):
    """Our parameters, each made of the file's tensors when it is asked for.

    The matrices come in one dtype, the widest that any is stored in; norms and routers in float32 or wider.

    Args:
        files: with everything that the bindings name.
        bindings: of all parameters.
        float32: the parameters that are never narrower.
        mapped: whether tensors are mapped into memory, or each is read when it is asked for.

    Attributes:
        files: as given.
        bindings: by our names.
        dtypes: by our names, in which they come.
        dtype: of the matrices.
        float32: as given.
    """

    def __init__(self, files: TensorFiles, bindings: list[Binding], float32: set[str], *, mapped: bool = True) -> None:
        self.files = files
        self.bindings = {binding.ours: binding for binding in bindings}
        stored = {b.ours: widest(files.dtype(part) for part in b.theirs) for b in bindings}
        self.dtype = widest(dtype for name, dtype in stored.items() if name not in float32)
        self.dtypes = {
            name: widest([dtype, torch.float32]) if name in float32 else self.dtype for name, dtype in stored.items()
        }
        self.float32 = float32
        self._tensors = files if mapped else UnmappedFiles(files)

    def __getitem__(self, name: str) -> torch.Tensor:
        binding = self.bindings[name]
        return binding.join([self._tensors[part] for part in binding.theirs]).to(self.dtypes[name])

    def part(self, name: str, part: Part) -> torch.Tensor:
        """What ``part`` says of ``name``; of stacked experts, no other expert is read."""
        binding = self.bindings[name]
        if len(binding.theirs) == 1 and binding.rows is None and len(part.spans[0]) == 1:
            ((first, last),) = part.spans[0]
            inner = Part((last - first, *binding.shape[1:]), (((0, last - first),), *part.spans[1:]))
            return inner.cut(self._tensors.rows(binding.theirs[0], first, last)).to(self.dtypes[name])
        if len(binding.shape) < 3 or len(binding.theirs) == 1:
            return part.cut(binding.join([self._tensors[one] for one in binding.theirs])).to(self.dtypes[name])
        per_expert, found = len(binding.theirs) // binding.shape[0], []
        for first, last in part.spans[0]:
            shape = (last - first, *binding.shape[1:])
            theirs = binding.theirs[first * per_expert : last * per_expert]
            experts = replace(binding, shape=shape, theirs=theirs).join([self._tensors[one] for one in theirs])
            inner = replace(part, shape=shape, spans=(((0, last - first),), *part.spans[1:]))
            found.append(inner.cut(experts.view(shape)).to(self.dtypes[name]))
        return torch.cat(found) if found else torch.empty(part.local_shape, dtype=self.dtypes[name])

    def in_8_bits(self, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The integers and scales of ``name``, rounded while it is read."""
        return read_in_8_bits(self.files, self.bindings[name], device)

    def in_memory(self) -> "StoredWeights":
        """The same, whose tensors are read when they are asked for, in place of mapped: the pages of a map count as
        this process's memory once they were touched."""
        return StoredWeights(self.files, list(self.bindings.values()), self.float32, mapped=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bindings)

    def __len__(self) -> int:
        return len(self.bindings)

    def wanted_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype of ``name`` in a model that is cast to ``dtype``."""
        return widest([dtype, torch.float32]) if name in self.float32 else dtype

    def is_mapped(self, name: str, dtype: torch.dtype) -> bool:
        """Whether ``name`` lies in a file as a model of ``dtype`` has it."""
        binding = self.bindings[name]
        plain = len(binding.theirs) == 1 and binding.rows is None
        return plain and self.files.dtype(binding.theirs[0]) == self.wanted_dtype(name, dtype)

    def stored_bytes(self, name: str) -> int:
        """What the files hold of ``name``."""
        binding = self.bindings[name]
        elements = torch.Size(binding.part_shape).numel()
        return sum(elements * self.files.dtype(part).itemsize for part in binding.theirs)


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype that holds the values of all of them."""
    return functools.reduce(torch.promote_types, dtypes)


def narrowed(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in ``dtype`` where every value survives it, else as it is."""
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def empty_model(config: ModelConfig, dtype: torch.dtype, int8: Int8, mesh: Mesh | None = None) -> HybridLM:
    """The model, or the part of it that a rank of ``mesh`` serves, on the meta device, where it weighs nothing.

    Raises:
        UserError: what ranks divide is to be in 8 bits and cannot.
    """
    with torch.device("meta"):
        network = HybridLM(config).to(dtype)
    if mesh is not None:
        if int8 == "all":
            raise UserError("ranks hold the embedding and output projection as they are; take int8='layers'.")
        divide(network, mesh)
    return network if int8 == "none" else quantize(network, head=int8 == "all")


def weight_bytes(config: ModelConfig, dtype: torch.dtype, int8: Int8 = "none", mesh: Mesh | None = None) -> int:
    """What the weights of a model weigh in memory: matrices in ``dtype``, or such as ``int8`` names in 8 bits."""
    network = empty_model(config, dtype, int8, mesh)
    tensors = {id(tensor): tensor.nbytes for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensors.values())


def check_room(
    config: ModelConfig, dtype: torch.dtype, int8: Int8, device: torch.device, mesh: Mesh | None = None
) -> None:
    """Refuse a model whose weights, or this rank's part of them, do not fit.

    Raises:
        UserError: what it needs, what there is, and what would help.
    """
    needed, free = weight_bytes(config, dtype, int8, mesh), free_bytes(device)
    if free is None or needed <= free:
        return
    kind = f"in {str(dtype).removeprefix('torch.')}" + {"none": "", "layers": " and 8 bits", "all": " and 8 bits"}[int8]
    kinds: tuple[Int8, ...] = ("layers", "all") if mesh is None else ("layers",)
    smaller = {name: weight_bytes(config, dtype, name, mesh) for name in kinds}
    fitting = [f"int8={name!r} needs {_gigabytes(size)}" for name, size in smaller.items() if size <= min(free, needed)]
    advice = f"in 8 bits it fits: {', '.join(fitting)}" if fitting else "take a machine with more, or several ranks"
    raise UserError(
        f"the model's weights need {_gigabytes(needed)} {kind}, and {device} has {_gigabytes(free)} free, of which its "
        f"sequences want some too: {advice}."
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def fill(
    network: HybridLM, weights: StoredWeights, dtype: torch.dtype, device: torch.device, mesh: Mesh | None = None
) -> None:
    """Give a model its weights, of which no more than a few exist twice at any moment.

    Args:
        network: of :func:`empty_model`.
        weights: what it gets.
        dtype: of the matrices that are not 8 bits.
        device: where they go.
        mesh: of the ranks, where each gets its part. A row of 8 bits is rounded before it is cut, so that all parts
            together are what one process has.

    Raises:
        UserError: a weight that 8 bits cannot hold, or a file that changes meanwhile.
    """
    in_8_bits = {name for name, buffer in network.named_buffers() if buffer.dtype == torch.int8}

    def make(name: str) -> tuple[str, torch.Tensor, torch.Tensor | None]:
        shape = weights.bindings[name].shape
        part = Part.whole(shape) if mesh is None else part_of(name, shape, mesh.plan, mesh.at)
        if name in in_8_bits:
            weight, scale = weights.in_8_bits(name, device)
            return name, part.cut(weight), Part(shape[:-1], part.spans[:-1]).cut(scale)
        return name, part.cut(weights[name]).to(device, weights.wanted_dtype(name, dtype)), None

    read = {name for name in weights if name in in_8_bits or device.type != "cpu" or not weights.is_mapped(name, dtype)}
    total = sum(map(weights.stored_bytes, read))
    shown = progress("loading", total, "B") if total >= _SHOWN_BYTES else nullcontext()
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool, shown as bar:
        for name, tensor, scale in pool.map(make, weights):
            module, _, leaf = name.rpartition(".")
            owner = network.get_submodule(module)
            if scale is not None:
                owner.register_buffer(leaf, tensor)
                owner.register_buffer(scale_of(leaf), scale)
            else:
                setattr(owner, leaf, nn.Parameter(tensor, owner.get_parameter(leaf).requires_grad))
            if bar is not None and name in read:
                bar.advance(weights.stored_bytes(name))
    if network.config.tie_word_embeddings:
        if "embed_tokens.weight" in in_8_bits:
            tie(network)
        else:
            network.lm_head.weight = network.embed_tokens.weight
