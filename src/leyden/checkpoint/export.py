"""Export of a sharded model to a model directory, without any rank holding the whole model.

The result is what :func:`leyden.checkpoint.save` writes of the whole model.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from leyden.checkpoint.coordinator import Coordinator, coordinator_of
from leyden.checkpoint.layouts import Layout, layout_named
from leyden.checkpoint.model_files import OfWeight, file_tensors, write_files
from leyden.checkpoint.model_place import refuse_to_replace_others
from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.shard_index import ShardIndex
from leyden.checkpoint.stored_model import bindings_of, check_fit
from leyden.checkpoint.stored_weights import narrowed
from leyden.checkpoint.tensor_files import SHARD_BYTES
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
    narrow = _narrow(weights, config, kind, dtype, coordinator)
    tensors = file_tensors(config, kind, settings, dtype, narrow)
    shards = ShardIndex(weights, coordinator)
    weights_of_files = (block.binding for file in tensors for block in file.blocks if isinstance(block, OfWeight))
    shards.check({binding.ours: binding.shape for binding in weights_of_files})
    write_files(tensors, shards, directory, settings, tokenizer, coordinator=coordinator, file_bytes=file_bytes)


def _narrow(
    weights: Mapping[str, TensorPiece],
    config: ModelConfig,
    layout: Layout,
    dtype: torch.dtype,
    coordinator: Coordinator,
) -> set[str]:
    """The norms and routers that the layout stores in ``dtype``, since that rounds nothing on any rank."""
    wide = torch.promote_types(dtype, torch.float32)
    if not layout.narrows or dtype == wide:
        return set()
    _, float32 = bindings_of(layout, config)
    own = {n: narrowed(weights[n].tensor.to(wide), dtype).dtype == dtype for n in float32 if n in weights}
    everyone = coordinator.on_all_ranks(lambda: own)
    return {name for name in float32 if all(of_rank.get(name, True) for of_rank in everyone)}
