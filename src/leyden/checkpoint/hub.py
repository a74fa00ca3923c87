"""Where a MODEL lies: a directory, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from leyden.core.errors import UserError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja"]


def find_model(model: str | Path) -> Path:
    """The directory of ``model``; a hub id ``org/name`` is downloaded first (weights and JSON, nothing that runs).

    Raises:
        UserError: no such directory, or the hub's package, the network or the repository is missing.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{model} is a file; a model is a directory with config.json and its weights.")
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise UserError(f"{model} does not exist; give a model's directory, or a hub id such as org/name.")
    return _download(model)


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
