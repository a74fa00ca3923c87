"""Resolving what a MODEL names: a model directory, a run, a checkpoint of one, or a Hugging Face hub repository."""

import re
from pathlib import Path

from leyden.checkpoint.model_place import is_gguf
from leyden.checkpoint.training import check_whole, is_checkpoint, latest_training, newest_training
from leyden.core.checksums import SUMS
from leyden.core.errors import UserError
from leyden.core.log import say

_KINDS = (
    "a directory with config.json and its weights, as a run's final/ is; a run, which stands for that; a checkpoint; "
    "or a file whose name ends in .gguf"
)
_MARKS = ("config.json", "adapter_config.json")
"""Of the settings of a model, and of an adapter, which stands for the model it was trained on with its additions."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja", SUMS]


def find_model(model: str | Path, *, verify: bool = True) -> Path:
    """The directory of ``model``: with ``config.json``, or a checkpoint (:func:`is_checkpoint`) that is whole; or a
    GGUF file, as it is.

    A run is its ``final/``, and its newest whole checkpoint before it has one. A hub id ``org/name`` is downloaded
    first (weights and JSON, nothing that runs).

    Args:
        model: as the user gave it.
        verify: read a checkpoint through to see that it is whole; False leaves that to whoever reads its tensors.

    Raises:
        UserError: no such directory, no model in it, a damaged checkpoint, or the hub's package, the network or the
            repository is missing.
    """
    path = Path(model)
    if path.is_dir():
        return _model_in(path, verify)
    if is_gguf(path):
        return path
    if path.exists():
        raise UserError(f"{model} is a file; a model is {_KINDS}.")
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise UserError(f"{model} does not exist; give a model's directory, or a hub id such as org/name.")
    return _download(model)


def _model_in(path: Path, verify: bool) -> Path:
    if any((path / name).exists() for name in _MARKS):
        return path
    if is_checkpoint(path):
        if verify:
            check_whole(path)
        return path
    if any((path / "final" / name).exists() for name in _MARKS):
        return path / "final"
    newest = latest_training(path) if verify else newest_training(path)
    if newest is not None:
        say(f"{path} has no final/ yet: this is its newest checkpoint, {newest.name}")
        return newest
    if (path / "recipe.toml").exists():
        raise UserError(f"{path} is a run that has neither a model (final/) nor a whole checkpoint yet; let it go on.")
    raise UserError(f"{path / 'config.json'} does not exist; a model is {_KINDS}.")


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UserError(
            f"{hub_id} is no directory here; to fetch it from the hub, install a package: pip install huggingface_hub."
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{hub_id} is no directory here, and the hub did not give it: {reason}. Check the name and the network."
        ) from None
