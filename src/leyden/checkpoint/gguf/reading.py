"""GGUF files that hold a model's weights as they were, opened as a model's directory is."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from leyden.checkpoint.gguf.header import GgufHeader, GgufTensor, read_header
from leyden.checkpoint.gguf.vocabulary import SECTION_KEY, section_of, tokenizer_of
from leyden.checkpoint.layouts.dialect import SECTION
from leyden.checkpoint.layouts.gguf import ARCHITECTURE, GGUF
from leyden.checkpoint.stored_model import StoredModel, bindings_of, check_fit
from leyden.checkpoint.stored_weights import StoredWeights
from leyden.checkpoint.tensor_files import StoredTensor, TensorFiles
from leyden.core.errors import UserError
from leyden.model import ModelConfig

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LISTED = 4


def read_gguf_config(path: Path) -> ModelConfig:
    """The shape of the model in ``path``.

    Raises:
        UserError: no GGUF file, or one of another architecture.
    """
    return _config_of(read_header(path))


def open_gguf(path: Path) -> StoredModel:
    """The model in ``path``; its names and shapes are checked.

    Raises:
        UserError: as :func:`read_gguf_config`; or tensors are quantized, missing, unexpected, misshapen or cut off.
    """
    header = read_header(path)
    config = _config_of(header)
    _refuse_quantized(header)
    if config.num_hidden_layers * max(1, config.num_local_experts) > max(len(header.tensors), 1) * 2**17:
        raise UserError(
            f"{path} does not hold the model that its header describes: that has {config.num_hidden_layers:,} layers "
            f"of {config.num_local_experts:,} experts, and the file {len(header.tensors):,} tensors."
        )
    files = GgufFiles(header)
    bindings, float32 = bindings_of(GGUF, config)
    files.check({name: binding.part_shape for binding in bindings for name in binding.theirs})
    tokenizer = tokenizer_of(header.keys, str(path))
    check_fit(config, tokenizer, str(path))
    return StoredModel(GGUF.name, config, StoredWeights(files, bindings, float32), tokenizer)


def _config_of(header: GgufHeader) -> ModelConfig:
    keys, source = header.keys, str(header.path)
    kind = keys.get("general.architecture")
    if kind != ARCHITECTURE:
        raise UserError(
            f"{source} is a GGUF file of the architecture {kind!r}, and Leyden reads {ARCHITECTURE!r}, the one of "
            "MiniMax-Text-01; a model of another kind computes something else, and no weights of it would fit."
        )
    if keys.get("split.count", 0) not in (0, 1):
        raise UserError(
            f"{source} is one of {keys['split.count']} parts of a model; join them by llama-gguf-split --merge."
        )
    data = {key.removeprefix(f"{kind}."): value for key, value in keys.items() if key.startswith(f"{kind}.")}
    embedding = header.tensors.get("token_embd.weight")
    data.setdefault("vocab_size", embedding.shape[0] if embedding else 0)
    data["tie_word_embeddings"] = "output.weight" not in header.tensors
    if SECTION_KEY in keys:
        data[SECTION] = section_of(keys, source)
    return GGUF.read_config(data, source)


def _refuse_quantized(header: GgufHeader) -> None:
    wrong = [f"{name} is {one.kind}" for name, one in header.tensors.items() if one.kind not in _DTYPES]
    if wrong:
        rest = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise UserError(
            f"{header.path} holds no weights that Leyden reads: {', '.join(wrong[:_LISTED])}{rest}. It reads weights "
            f"as they were trained ({', '.join(_DTYPES)}), and these are rounded to fewer bits; take the model that "
            "the file was made of. Leyden serves in 8 bits by rounding that (--int8)."
        )


class GgufFiles(TensorFiles):
    """The tensors of one GGUF file, those of stacked experts one by one, as ``NAME[EXPERT]``."""

    described_by = "its header"

    def __init__(self, header: GgufHeader) -> None:
        self.directory = header.path
        self.stored, self.problems = {}, []
        self._content = header.content
        for name, tensor in header.tensors.items():
            self.stored |= {own: self._entry(one) for own, one in _experts(name, tensor)}

    def _entry(self, tensor: GgufTensor) -> StoredTensor:
        end = tensor.start + math.prod(tensor.shape) * _DTYPES[tensor.kind].itemsize
        complete = end <= len(self._content) and tensor.start % _DTYPES[tensor.kind].itemsize == 0
        return StoredTensor(self.directory, tensor.kind, tensor.shape, tensor.start, complete)

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self.stored[name]
        flat: Any = torch.frombuffer(
            self._content, dtype=_DTYPES[stored.dtype], count=math.prod(stored.shape), offset=stored.start
        )
        return flat.view(stored.shape)


def _experts(name: str, tensor: GgufTensor) -> Iterator[tuple[str, GgufTensor]]:
    """A stacked tensor as one for each expert; another one as it is."""
    if len(tensor.shape) != 3:
        yield name, tensor
        return
    count, *shape = tensor.shape
    num_bytes = math.prod(shape) * _DTYPES[tensor.kind].itemsize
    for expert in range(count):
        yield f"{name}[{expert}]", replace(tensor, shape=tuple(shape), start=tensor.start + expert * num_bytes)
