"""A model written as a GGUF file, by the ``gguf`` package, a block of a tensor in memory at a time."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from leyden.checkpoint.gguf.vocabulary import SECTION_KEY, vocabulary_keys
from leyden.checkpoint.layouts.dialect import SECTION
from leyden.checkpoint.layouts.gguf import ARCHITECTURE, GGUF
from leyden.checkpoint.model_files import FileTensor, file_tensors
from leyden.checkpoint.shard_index import Rectangle
from leyden.checkpoint.stored_model import check_fit
from leyden.checkpoint.stored_weights import StoredWeights
from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.log import logger, progress
from leyden.model import ModelConfig
from leyden.parallel.part import Part
from leyden.tokenizer import Tokenizer

_log = logger(__name__)

GgufType = Literal["f32", "bf16", "f16", "q8_0"]
"""What matrices are stored as; norms and routers are float32 always."""

_OF_DTYPE: dict[torch.dtype, GgufType] = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "q8_0": torch.float32}
"""In which blocks are made; those of ``q8_0`` are rounded after that."""
_BLOCK, _BLOCK_BYTES = 32, 34
"""Of ``q8_0``: so many numbers have a float16 scale in common, beside 8 bits each."""
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""``general.file_type``: what most tensors are stored as."""


def write_gguf(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None,
    path: Path,
    kind: GgufType | None = None,
) -> None:
    """Write a model as one file, whole or not at all; an older file of that name is replaced.

    Args:
        config: of the model.
        weights: its parameters, by our names.
        tokenizer: None: the file has no vocabulary, and is for programs that speak in token ids.
        path: of the file.
        kind: what matrices are stored as; None: as they are.

    Raises:
        UserError: the package ``gguf`` is missing, llama.cpp cannot express the model or its tokenizer, the weights are
            of a dtype that the format's programs do not compute with, or the disk is full.
    """
    package = _package()
    kind = kind or _kind_of(weights["embed_tokens.weight"].dtype)
    keys = _keys(config, tokenizer, kind)
    tensors = _grouped(file_tensors(config, GGUF, {}, _DTYPES[kind], set()), kind)
    source = _Weights(weights)
    with atomic_file(path) as part:
        writer = package.GGUFWriter(part, ARCHITECTURE)
        for key, value in keys.items():
            _add(writer, key, value)
        for name, parts in tensors.items():
            writer.add_tensor_info(name, *_description(package, parts, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        total = sum(tensor.num_bytes for parts in tensors.values() for tensor in parts)
        with progress(f"writing {path.name}", total, "B") as bar:
            writer.write_padding(file, file.tell())
            for parts in tensors.values():
                start = file.tell()
                for block in _blocks(parts, source):
                    file.write(_bytes(package, block, _is_rounded(parts[0], kind)))
                    bar.advance(block.nbytes)
                writer.write_padding(file, file.tell() - start)
        writer.close()


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(
            "a GGUF file is written by the package gguf, which is not installed: pip install 'leyden[gguf]'."
        ) from None
    return gguf


def _kind_of(dtype: torch.dtype) -> GgufType:
    if dtype not in _OF_DTYPE:
        raise UserError(
            f"the weights are {str(dtype).removeprefix('torch.')}, which llama.cpp does not compute with; say what to "
            f"store: --dtype {' or '.join(('f32', 'bf16', 'q8_0'))}."
        )
    return _OF_DTYPE[dtype]


def _keys(config: ModelConfig, tokenizer: Tokenizer | None, kind: GgufType) -> dict[str, Any]:
    """All keys of the header but the architecture, which the package writes."""
    check_fit(config, tokenizer, "the model to save")
    fields = GGUF.write_config(config, _DTYPES[kind], tokenizer)
    if "linear_attention" in config.layer_types and config.lightning_norm_eps != config.rms_norm_eps:
        _log.warning(
            "llama.cpp has one epsilon for all norms: it takes rms_norm_eps, %g, where this model has %g for the heads "
            "of lightning attention (lightning_norm_eps); its logits differ a little from Leyden's (docs/gguf.md).",
            config.rms_norm_eps,
            config.lightning_norm_eps,
        )
    section = fields.pop(SECTION)
    keys: dict[str, Any] = {"general.type": "model", "general.file_type": _FILE_TYPES[kind]}
    if kind == "q8_0":
        keys["general.quantization_version"] = 2
    keys |= {f"{ARCHITECTURE}.{key}": value for key, value in fields.items()}
    keys[SECTION_KEY] = json.dumps(section)
    if tokenizer is None:
        return keys | {"tokenizer.ggml.model": "no_vocab"}
    return keys | vocabulary_keys(tokenizer, config.vocab_size)


def _add(writer: Any, key: str, value: Any) -> None:
    """A key in the format's type for it: numbers are uint32 and float32."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _grouped(tensors: list[FileTensor], kind: GgufType) -> dict[str, list[FileTensor]]:
    """The tensors of the file by name, each with what it is made of: itself, or the matrices of its experts."""
    found: dict[str, list[FileTensor]] = {}
    for tensor in tensors:
        if _is_rounded(tensor, kind) and tensor.shape[-1] % _BLOCK:
            raise UserError(
                f"q8_0 rounds {_BLOCK} numbers of a row together, and {tensor.name} has rows of {tensor.shape[-1]}; "
                "store bf16 or f32."
            )
        found.setdefault(tensor.name.partition("[")[0], []).append(tensor)
    return found


def _is_rounded(tensor: FileTensor, kind: GgufType) -> bool:
    """Whether ``tensor`` is stored in 8 bits: a matrix, and no router."""
    return kind == "q8_0" and len(tensor.shape) > 1 and not tensor.name.endswith("ffn_gate_inp.weight")


def _description(package: Any, parts: list[FileTensor], kind: GgufType) -> tuple[Any, ...]:
    """Shape, dtype, bytes and type of a tensor, as the package asks for them."""
    first = parts[0]
    shape = (len(parts), *first.shape) if "[" in first.name else first.shape
    if _is_rounded(first, kind):
        rounded = math.prod(shape) // _BLOCK * _BLOCK_BYTES
        return shape, None, rounded, package.GGMLQuantizationType.Q8_0
    types = package.GGMLQuantizationType
    own = {torch.float32: types.F32, torch.bfloat16: types.BF16, torch.float16: types.F16}[first.dtype]
    return shape, None, math.prod(shape) * first.dtype.itemsize, own


def _blocks(parts: list[FileTensor], source: "_Weights") -> Iterator[torch.Tensor]:
    for tensor in parts:
        for rectangle in tensor.blocks:
            block = tensor.block(rectangle, source, to=0, is_mine=True)
            assert block is not None, "there is one rank"
            yield block


def _bytes(package: Any, block: torch.Tensor, rounded: bool) -> Any:
    block = block.detach().cpu().contiguous()
    if not rounded:
        return block.view(-1).view(torch.uint8).numpy().data
    return package.quants.quantize(block.numpy(), package.GGMLQuantizationType.Q8_0).tobytes()


class _Weights:
    """The blocks of weights that one process has or reads (:class:`leyden.checkpoint.model_files.Blocks`)."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights.in_memory() if isinstance(weights, StoredWeights) else weights

    def gather(self, name: str, wanted: Rectangle, to: int, dtype: torch.dtype) -> torch.Tensor:
        """``wanted`` of the weight ``name`` in ``dtype``."""
        spans = tuple(((at, at + size),) for at, size in zip(wanted.start, wanted.sizes, strict=True))
        if isinstance(self._weights, StoredWeights):
            return self._weights.part(name, Part(self._weights.bindings[name].shape, spans)).to(dtype)
        whole = self._weights[name]
        return Part(tuple(whole.shape), spans).cut(whole).to(dtype)
