"""Models written: ``save`` one that is in memory, ``convert`` one that is on disk.

A directory, or a GGUF file, is written whole or not at all, a shard or a block of it in memory at a time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from leyden.checkpoint.adapter import find_adapter
from leyden.checkpoint.gguf import write_gguf
from leyden.checkpoint.hub import find_model
from leyden.checkpoint.layouts import GGUF, Layout, layout_named
from leyden.checkpoint.model_directory import open_stored, with_adapter
from leyden.checkpoint.model_place import (
    note_files,
    refuse_other_file,
    refuse_to_overwrite,
    refuse_to_replace_others,
)
from leyden.checkpoint.stored_model import bindings_of, check_fit
from leyden.checkpoint.stored_weights import narrowed
from leyden.checkpoint.tensor_files import write_json, write_tensors
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.model import HybridLM, ModelConfig
from leyden.model.lora import is_adapter
from leyden.tokenizer import Tokenizer

StoredType = Literal["f32", "bf16", "q8_0"]
"""What matrices can be stored as."""

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def save(model: HybridLM, tokenizer: Tokenizer | None, directory: str | Path, layout: str = "leyden") -> None:
    """Write a model that :func:`load` opens; an older model in ``directory`` is replaced.

    Args:
        model: any dtype, any device.
        tokenizer: None to write none.
        directory: where to; of the layout ``"gguf"``, a file whose name ends in ``.gguf``.
        layout: ``"leyden"``, ``"transformers"`` (stock ``MiniMaxForCausalLM``), ``"minimax"`` (as
            released), ``"minimax_vl"`` (with a vision side, as released), ``"ling"`` (Ling- and Ring-2.5 and 2.6),
            ``"minicpm_sala"``, ``"hypenet"``, or ``"gguf"`` (one file, for llama.cpp).

    Raises:
        UserError: the layout cannot express the model, it has adapters, or ``directory`` holds something that is no
            model.
    """
    if any(map(is_adapter, model.state_dict())):
        raise UserError(
            "the model has adapters, and no layout of models has a place for them; write those by "
            "leyden.checkpoint.adapter.write_adapter, and open them with the model that they were trained on."
        )
    if layout == GGUF.name:
        refuse_other_file(Path(directory))
        write_gguf(model.config, model.state_dict(), tokenizer, Path(directory))
    else:
        _write(model.config, model.state_dict(), tokenizer, Path(directory), layout_named(layout))


def convert(
    source: str | Path,
    target: str | Path,
    layout: str,
    *,
    dtype: StoredType | None = None,
    replace: bool = False,
    lora: str | Path | None = None,
) -> None:
    """Write the model ``source`` to ``target`` in another layout, a shard in memory at a time.

    Args:
        source: a model's directory in any layout, a GGUF file, or a hub id.
        target: a directory that does not exist, or is empty; of the layout ``"gguf"``, a file ``NAME.gguf``.
        layout: as for :func:`save`.
        dtype: what the matrices are stored as; None: as they are. ``"q8_0"``, 8 bits, is of ``"gguf"`` alone.
        replace: an older model in ``target`` is replaced; never the source itself.
        lora: an adapter, whose additions are merged into the weights; None for none.

    Raises:
        UserError: as :func:`load` and :func:`save` do, or ``target`` holds a model and ``replace`` is False.
    """
    target, place = Path(target), find_model(source)
    if layout == GGUF.name:
        refuse_other_file(target, place, replace)
    elif dtype == "q8_0":
        raise UserError(f"--dtype q8_0 is of the layout gguf; the layout {layout} stores f32 or bf16.")
    else:
        layout_named(layout)
        refuse_to_overwrite(place, target, replace)
    stored = open_stored(place)
    if lora is not None:
        stored = with_adapter(stored, find_adapter(lora))
    if layout == GGUF.name:
        write_gguf(stored.config, stored.weights, stored.tokenizer, target, dtype)
    else:
        wanted = None if dtype is None else _DTYPES[dtype]
        _write(stored.config, stored.weights, stored.tokenizer, target, layout_named(layout), wanted)


def _write(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None,
    directory: Path,
    layout: Layout,
    dtype: torch.dtype | None = None,
) -> None:
    dtype = dtype or weights["embed_tokens.weight"].dtype
    settings = layout.write_config(config, dtype, tokenizer)
    bindings, float32 = bindings_of(layout, config)
    check_fit(config, tokenizer, "the model to save")
    refuse_to_replace_others(directory)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for binding in bindings:
            whole = weights[binding.ours]
            if binding.ours not in float32:
                whole = whole.to(dtype)
            elif layout.narrows:
                whole = narrowed(whole, dtype)
            yield from zip(binding.theirs, binding.split(whole), strict=True)
        for item in layout.derived(config, settings):
            yield item.name, item.make()

    with atomic_directory(directory) as part:
        write_json(part / "config.json", settings)
        write_tensors(part, tensors())
        if tokenizer is not None:
            tokenizer.save(part)
        note_files(part)
