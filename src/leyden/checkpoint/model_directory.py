"""Models on disk opened: ``load`` and ``read_config``.

A MODEL is a directory with ``config.json``, safetensors and, mostly, a tokenizer, in one of our layouts; a training
checkpoint, whose masters are in our own; or a GGUF file. It is memory-mapped and never unpickled.
Matrices keep the dtype they are stored in; norms and routers are float32 in the model whatever the file says.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from leyden.checkpoint.adapter import is_adapter_directory, read_adapter
from leyden.checkpoint.compressed_files import SECTION as COMPRESSION
from leyden.checkpoint.compressed_files import schemes_of, tensor_files
from leyden.checkpoint.gguf import open_gguf, read_gguf_config
from leyden.checkpoint.hub import find_model
from leyden.checkpoint.layouts import Derived, Layout, layout_of
from leyden.checkpoint.master_files import MasterFiles
from leyden.checkpoint.merged_weights import MergedWeights, base_directory, check_base
from leyden.checkpoint.model_place import SETTINGS, is_gguf
from leyden.checkpoint.rules import parts_of_tensors, shapes_of_tensors
from leyden.checkpoint.stored_model import StoredModel, bindings_of, check_fit
from leyden.checkpoint.stored_weights import StoredWeights, check_room, empty_model, fill, weight_bytes
from leyden.checkpoint.tensor_files import TensorFiles, read_json
from leyden.checkpoint.training import is_checkpoint, read_values
from leyden.core.checksums import SUMS, changed_files
from leyden.core.device import free_bytes, narrow_products_are_slow
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.model import HybridLM, ModelConfig
from leyden.model.lora import is_adapter
from leyden.model.quantized import Int8
from leyden.parallel.mesh import Mesh
from leyden.tokenizer import Tokenizer

_log = logger(__name__)
_TOKENIZER_FILE = "tokenizer.json"
_HEAD = "lm_head.weight"
"""The output projection, as every layout calls it; a tied model may come with a copy of its embedding there."""
_MANY_LAYERS, _MANY_TENSORS = 1 << 8, 1 << 17
"""Up to here names are made whatever config.json says, and what is missing is listed."""


def load(
    model: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str | None = None,
    int8: Int8 = "none",
    mesh: Mesh | None = None,
) -> tuple[HybridLM, Tokenizer | None]:
    """Open a model in any layout.

    Args:
        model: a model's directory, a run, a checkpoint of one, or a hub id ``org/name``.
        dtype: cast the matrices; by default they stay as stored, memory-mapped. ``"auto"``: as stored, but float32 on a
            CPU without arithmetic for 16-bit numbers, where that fits into the memory that is free; a line says so.
        device: where to put it; by default the CPU.
        int8: hold weights in 8 bits (:func:`leyden.model.quantize`), rounded while they are read, so that no more than
            some MB of them ever exist in full: ``"layers"``, every projection and all experts; ``"all"``, the embedding
            and the output projection as well.
        mesh: of a plan by :func:`leyden.parallel.serving.serving_plan`: only this rank's part of the model, ready to
            be served with the other ranks.

    Returns:
        The model in evaluation mode, and its tokenizer, None where the directory has none.

    Raises:
        UserError: nothing there, another kind of model, tensors missing, unexpected, misshapen or truncated, files that
            are not what Leyden wrote (``SHA256SUMS``), or weights that do not fit into the memory that is free.
    """
    stored, device = open_stored(find_model(model), mesh), torch.device(device or "cpu")
    if dtype == "auto":
        dtype = _dtype_to_compute_in(stored, int8, device, mesh)
    dtype = dtype or stored.weights.dtype
    check_room(stored.config, dtype, int8, device, mesh)
    network = empty_model(stored.config, dtype, int8, mesh)
    fill(network, stored.weights, dtype, device, mesh)
    return network.to(device=device, dtype=dtype).eval(), stored.tokenizer


def _dtype_to_compute_in(stored: "StoredModel", int8: Int8, device: torch.device, mesh: Mesh | None) -> torch.dtype:
    """That of the weights, or float32. Ranks, which must choose alike, keep that of the weights."""
    own, wide = stored.weights.dtype, torch.float32
    slow = None if own.itemsize != 2 or mesh is not None else narrow_products_are_slow(device)
    if slow is None:
        return own
    needed, free = weight_bytes(stored.config, wide, int8, mesh), free_bytes(device)
    name = str(own).removeprefix("torch.")
    if free is not None and needed > 0.8 * free:
        _log.warning("%s: this processor's %s, but the weights in float32 do not fit into its memory", name, slow)
        return own
    _log.info("float32, though the weights are %s: this processor's %s", name, slow)
    return wide


def read_config(model: str | Path) -> ModelConfig:
    """The shape of the model in a directory of any layout, a GGUF file or a hub id; its weights are not read.

    Raises:
        UserError: nothing there, or another kind of model.
    """
    place = find_model(model)
    return read_gguf_config(place) if is_gguf(place) else _read_settings(place)[1]


def _read_settings(directory: Path) -> tuple[Layout, ModelConfig, dict[str, Any]]:
    """The layout of a directory, the model's shape, and the content of config.json."""
    path = directory / "config.json"
    if is_adapter_directory(directory):
        return _read_settings(base_directory(directory))
    if is_checkpoint(directory):
        path = directory / "values.json"
        data = {"model_type": "leyden", **_config_of_checkpoint(directory)}
    else:
        data = read_json(path)
    layout = layout_of(data, str(path))
    compressed = bool(schemes_of(data, str(path)))  # else the layout says what it thinks of the section
    shape = {key: value for key, value in data.items() if not (compressed and key == COMPRESSION)}
    return layout, layout.read_config(shape, str(path)), data


def _config_of_checkpoint(directory: Path) -> dict[str, Any]:
    config = read_values(directory).get("model")
    if config is None:
        raise UserError(
            f"{directory} was written by an earlier version, without the model's shape. Go on with its run by this "
            "version: the next checkpoint has it."
        )
    return config


def open_stored(directory: Path, mesh: Mesh | None = None, *, verify: bool = True) -> StoredModel:
    """The model in ``directory``, as :func:`find_model` gave it; its names and shapes are checked.

    Args:
        directory: in any layout, or a checkpoint; or a GGUF file.
        mesh: of ranks that all open it; each compares its share of the files with their hashes.
        verify: compare the files with their hashes, which reads them; False reads headers alone.

    Raises:
        UserError: as :func:`load` says.
    """
    if is_gguf(directory):
        return open_gguf(directory)
    if is_adapter_directory(directory):
        return with_adapter(open_stored(base_directory(directory), mesh, verify=verify), directory)
    layout, config, data = _read_settings(directory)
    trained = is_checkpoint(directory)
    files = MasterFiles(directory) if trained else tensor_files(directory, data)
    if trained and len(files) and all(map(is_adapter, files)):
        raise UserError(
            f"{directory} holds the adapters of a run that has not ended, and not the model that they belong to. Let "
            "the run go on: its final/ opens."
        )
    _check_count(layout, config, files)
    bindings, float32 = bindings_of(layout, config)
    for name in layout.left_out(config, list(files), str(directory)):
        del files.stored[name]
    derived = layout.derived(config, data)
    wanted = shapes_of_tensors(bindings)
    if config.tie_word_embeddings and _HEAD in files and _HEAD not in wanted:
        files.forget_copy(_HEAD, of=next(b.theirs[0] for b in bindings if b.ours == "embed_tokens.weight"))
    files.check(wanted | {item.name: item.shape for item in derived})
    for name, parts in parts_of_tensors(bindings).items():
        if len(parts) > 1:
            files.divide(name, parts)
    _check_derived(files, derived)
    if verify:
        _check_unchanged(files, mesh)
    place = directory.absolute().parents[1] / "tokenizer" if trained else directory
    tokenizer = Tokenizer.load(place) if (place / _TOKENIZER_FILE).exists() else None
    check_fit(config, tokenizer, str(directory))
    return StoredModel(layout.name, config, StoredWeights(files, bindings, float32), tokenizer)


def with_adapter(stored: StoredModel, directory: Path) -> StoredModel:
    """A model as it is with the additions of the adapter in ``directory``, which may have a tokenizer beside it."""
    adapter = read_adapter(directory, stored.config)
    check_base(adapter, stored.weights)
    has_tokenizer = (directory / _TOKENIZER_FILE).exists()
    tokenizer = Tokenizer.load(directory) if has_tokenizer else stored.tokenizer
    check_fit(stored.config, tokenizer, str(directory))
    return replace(stored, weights=MergedWeights(stored.weights, adapter), tokenizer=tokenizer)


def _check_unchanged(files: TensorFiles, mesh: Mesh | None) -> None:
    """Compare what is read with its hashes, where Leyden wrote some; of several ranks each looks at its share."""
    directory = files.directory
    names = sorted({tensor.file.name for tensor in files.stored.values()} | {_TOKENIZER_FILE})
    changed = changed_files(directory, names if mesh is None else names[mesh.rank :: mesh.plan.world])
    if changed:
        raise UserError(
            f"{', '.join(str(directory / name) for name in changed)}: not what was written there by {SUMS}; it is "
            f"damaged, or was changed. Restore it from a copy; if the change was meant, remove {directory / SUMS}."
        )
    settings = [file.name for kind in SETTINGS for file in directory.glob(kind) if file.name != _TOKENIZER_FILE]
    if (mesh is None or mesh.rank == 0) and (edited := changed_files(directory, settings)):
        _log.warning(
            "%s: changed since the model was written (%s); restore it from a copy, if nobody meant to.",
            ", ".join(str(directory / name) for name in edited),
            SUMS,
        )


def _check_count(layout: Layout, config: ModelConfig, files: TensorFiles) -> None:
    """Refuse a config.json of more layers and experts than there are tensors, before a name is made for each."""
    by_expert = any("{expert}" in name for rule in layout.rules for name in rule.theirs)
    least = config.num_hidden_layers
    if by_expert:
        least = max(least, len(config.expert_layers()) * config.num_local_experts)
    if least > max(len(files), _MANY_TENSORS) or config.num_hidden_layers > max(len(files), _MANY_LAYERS):
        experts = f" of {config.num_local_experts:,} experts" if by_expert else ""
        found = "".join(f" {problem}." for problem in files.problems)
        raise UserError(
            f"{files.directory} does not hold the model its config.json describes: that has "
            f"{config.num_hidden_layers:,} layers{experts}, and the files hold {len(files):,} tensors, fewer than one "
            f"for each; they belong to different models, or files are missing.{found}"
        )


def _check_derived(files: TensorFiles, derived: list[Derived]) -> None:
    """Refuse a file whose derived tensors are not those of the model that would be built."""
    wrong = []
    for item in derived:
        difference = (files[item.name].double() - item.make().double()).abs()
        if not bool((difference <= item.tolerance(files.dtype(item.name))).all()):
            wrong.append(f"{item.name} (by up to {difference.max():.2g})")
    if wrong:
        raise UserError(
            f"{files.directory}: the stored decays are not those of lightning attention as released: "
            f"{', '.join(wrong[:4])}{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. A model that "
            "transformers initialised with a number of heads that is no power of two has other slopes, which Leyden "
            "does not compute with."
        )
