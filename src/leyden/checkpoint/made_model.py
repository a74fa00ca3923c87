"""Writing a model whose weights are made of those of other models: averaged, or upcycled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from leyden.checkpoint.layouts import layout_named, layout_to_share
from leyden.checkpoint.model_files import file_tensors, write_files
from leyden.checkpoint.shard_index import Rectangle
from leyden.checkpoint.stored_model import bindings_of
from leyden.checkpoint.stored_weights import narrowed
from leyden.checkpoint.tensor_files import SHARD_BYTES
from leyden.core.log import Bar, progress, say
from leyden.model import ModelConfig
from leyden.parallel import Part
from leyden.tokenizer import Tokenizer


class MadeWeights(Protocol):
    """Makes each part of a weight when it is asked for."""

    def part(self, name: str, part: Part) -> torch.Tensor:
        """What ``part`` says of the weight ``name``, in float64."""
        ...


class _Blocks:
    """The blocks of made weights (:class:`leyden.checkpoint.model_files.Blocks`); there is one process."""

    def __init__(self, weights: MadeWeights, shapes: Mapping[str, tuple[int, ...]], bar: Bar) -> None:
        self._weights, self._shapes, self._bar = weights, shapes, bar

    def gather(self, name: str, wanted: Rectangle, to: int, dtype: torch.dtype) -> torch.Tensor:
        """``wanted`` of the weight, rounded once."""
        spans = tuple(((at, at + size),) for at, size in zip(wanted.start, wanted.sizes, strict=True))
        found = self._weights.part(name, Part(self._shapes[name], spans)).to(dtype)
        self._bar.advance(found.nbytes)
        return found


def write_made(
    weights: MadeWeights,
    config: ModelConfig,
    dtype: torch.dtype,
    tokenizer: Tokenizer | None,
    target: Path,
    *,
    title: str,
    notes: Mapping[str, Mapping[str, Any]],
    layout: str | None = None,
    file_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model block by block, so that a tensor of it is in memory at a time, or an expert of one.

    Args:
        weights: of which it is made.
        config: its shape.
        dtype: of its matrices; norms and routers are float32 where they need it.
        tokenizer: None to write none.
        target: the directory, free as :func:`leyden.checkpoint.model_place.refuse_to_overwrite` says.
        title: of the progress bar.
        notes: further JSON files, by name.
        layout: in which it is written; None: that of transformers where it can express the model, else Leyden's.
        file_bytes: a file is no larger, unless one tensor is.

    Raises:
        UserError: the layout cannot express the model, or the disk is full.
    """
    if layout is None:
        layout, why = layout_to_share(config, dtype, tokenizer)
        if why:
            say(f"written in the layout {layout}: {why}")
    kind = layout_named(layout)
    settings = kind.write_config(config, dtype, tokenizer)
    bindings, float32 = bindings_of(kind, config)
    shapes = {binding.ours: binding.shape for binding in bindings}
    narrow = {
        name
        for name in float32
        if kind.narrows and narrowed(weights.part(name, Part.whole(shapes[name])), dtype).dtype == dtype
    }
    tensors = file_tensors(config, kind, settings, dtype, narrow)
    with progress(title, sum(tensor.num_bytes for tensor in tensors), "B") as bar:
        source = _Blocks(weights, shapes, bar)
        write_files(tensors, source, target, settings, tokenizer, file_bytes=file_bytes, notes=notes)
