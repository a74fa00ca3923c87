"""Checkpoints of a run in progress: ``checkpoints/step_XXXXXXXX/``, whole or not there.

Tensors go through torch.distributed.checkpoint, which writes what a rank holds with its place in the whole, so that a
run can go on under another plan. They lie in safetensors files and everything else in JSON: loading unpickles nothing.
A manifest of sizes and hashes tells a torn checkpoint from a whole one.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import atomic_directory
from leyden.core.log import logger

_log = logger(__name__)

_MANIFEST = "manifest.json"
_VALUES = "values.json"


def save_training(
    run_dir: Path, step: int, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``checkpoints/step_XXXXXXXX/``, then remove all but the newest ``keep`` up to this step.

    Checkpoints of later steps are removed too: a run that goes on from an earlier step has left them behind.

    Args:
        run_dir: the run's directory.
        step: optimizer steps taken.
        tensors: by name.
        values: JSON values, for everything that is not a tensor.
        keep: how many checkpoints to keep, at least 1.

    Returns:
        The directory.

    Raises:
        UserError: the disk is full; older checkpoints are untouched.
    """
    path = run_dir / "checkpoints" / f"step_{step:08d}"
    with atomic_directory(path) as part:
        _write_tensors(part, tensors)
        (part / _VALUES).write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
        manifest = {file.name: _fingerprint(file) for file in sorted(part.iterdir())}
        (part / _MANIFEST).write_bytes(_manifest.dump_json(manifest, indent=1))
    _prune(path, keep)
    return path


def latest_training(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or None; torn ones are named in a warning and passed over."""
    for path in reversed(_checkpoints(run_dir / "checkpoints")):
        problem = _problem(path)
        if problem is None:
            return path
        _log.warning("%s is not whole (%s); going on from the one before", path, problem)
    return None


def load_training(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fill ``tensors`` in place from the checkpoint ``path``, and return its values.

    Args:
        path: as :func:`latest_training` gave it.
        tensors: the same names, shapes and dtypes as were saved; each may be sharded otherwise.

    Raises:
        UserError: names, shapes or dtypes differ (nothing was changed).
    """
    reader = HuggingFaceStorageReader(str(path))
    _check_shapes(path, reader.read_metadata().state_dict_metadata, tensors)
    with _single_process():
        load({name: tensor.detach() for name, tensor in tensors.items()}, storage_reader=reader, no_dist=True)
    return json.loads((path / _VALUES).read_text(encoding="utf-8"))


def _write_tensors(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    try:
        with _single_process():
            save(dict(tensors), storage_writer=writer, no_dist=True)
    except CheckpointException as error:
        # One process: its own error is the one that matters (a full disk, say).
        cause, _ = next(iter(error.failures.values()))
        raise cause from None


@contextmanager
def _single_process() -> Iterator[None]:
    """DCP warns that it assumes a single process even where ``no_dist`` said so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _check_shapes(path: Path, saved: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    problems = [f"{name} is missing" for name in sorted(tensors.keys() - saved.keys())]
    problems += [f"{name} is unknown to this run" for name in sorted(saved.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & saved.keys()):
        item, tensor = saved[name], tensors[name]
        assert isinstance(item, TensorStorageMetadata)
        if (item.size, item.properties.dtype) != (tensor.shape, tensor.dtype):
            was = f"{item.properties.dtype} {list(item.size)}"
            problems.append(f"{name} is {was} there and {tensor.dtype} {list(tensor.shape)} here")
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{path} belongs to another model: {'; '.join(problems[:8])}{more}. "
            "Resume with the recipe that wrote it, or train in a new directory."
        )


class _Fingerprint(Config):
    """What the manifest says of one file."""

    bytes: int
    sha256: str


_manifest = TypeAdapter(dict[str, _Fingerprint])


def _fingerprint(file: Path) -> _Fingerprint:
    with file.open("rb") as stream:
        return _Fingerprint(bytes=file.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def _problem(path: Path) -> str | None:
    """Why a checkpoint is not whole, or None."""
    try:
        manifest = _manifest.validate_json((path / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return f"{_MANIFEST} cannot be read"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected.bytes:
            return f"{name} has {file.stat().st_size} bytes, not {expected.bytes}"
        if _fingerprint(file) != expected:
            return f"the contents of {name} have changed"
    return None


def _checkpoints(directory: Path) -> list[Path]:
    """In the order of their steps."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if re.fullmatch(r"step_\d{8}", path.name))


def _prune(newest: Path, keep: int) -> None:
    """Remove what :func:`save_training` says, and what a crash left half written."""
    paths = _checkpoints(newest.parent)
    kept = [path for path in paths if path <= newest][-keep:]
    for path in paths:
        if path not in kept:
            # Renamed first, so that a crash half-way does not leave a torn checkpoint under a good name.
            path.rename(path.with_name(f".{path.name}.old"))
    for leftover in newest.parent.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
