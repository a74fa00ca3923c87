"""Checkpoints of a run in progress: ``checkpoints/step_XXXXXXXX/``, whole or not there.

All ranks write what they hold into one directory (:mod:`leyden.checkpoint.pieces`), and a run can go on under another
plan. Tensors lie in safetensors files and everything else in JSON: loading unpickles nothing. A manifest of sizes and
hashes tells a torn checkpoint from a whole one.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from leyden.checkpoint.coordinator import ALONE, Coordinator
from leyden.checkpoint.piece_index import INDEX_FILE, SavedTensor, read_index
from leyden.checkpoint.tensor_files import read_json
from leyden.core.config import Config
from leyden.core.errors import UserError
from leyden.core.files import (
    atomic_directory,
    discard,
    disk_errors_are_user_errors,
    link_or_copy,
    remove_leftovers,
)
from leyden.core.log import logger

if TYPE_CHECKING:
    from leyden.checkpoint.pieces import TensorPiece

_log = logger(__name__)

_MANIFEST = "manifest.json"
_VALUES = "values.json"


@dataclass(frozen=True)
class Values:
    """What a checkpoint holds beside tensors, as JSON values.

    Attributes:
        run: the same on all ranks.
        rank: this rank's own; loaded, None where it differed between ranks and there was no rank of this number.
    """

    run: Any
    rank: Any = None


def save_training(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, "TensorPiece"],
    values: Values,
    *,
    keep: int,
    coordinator: Coordinator = ALONE,
) -> Path:
    """Write ``checkpoints/step_XXXXXXXX/``, then remove all but the newest ``keep`` up to this step.

    Checkpoints of later steps are removed too: a run that goes on from an earlier step has left them behind. All ranks
    call this at the same point.

    Args:
        run_dir: the run's directory, which all ranks see.
        step: optimizer steps taken.
        tensors: what this rank holds, by name; what several hold is written once.
        values: everything that is not a tensor.
        keep: how many checkpoints to keep, at least 1.
        coordinator: the ranks.

    Returns:
        The directory.

    Raises:
        UserError: the disk is full; on all ranks, and older checkpoints are untouched.
    """
    from leyden.checkpoint.pieces import save_pieces

    path = run_dir / "checkpoints" / f"step_{step:08d}"
    with coordinator.directory(path) as part:
        with disk_errors_are_user_errors(path):
            written = save_pieces(part, tensors, coordinator)
        ranks = _of_ranks(values.rank, coordinator)

        def values_and_hashes() -> dict[str, _Fingerprint]:
            with disk_errors_are_user_errors(path):
                if coordinator.rank == 0:
                    text = json.dumps({"run": values.run, "ranks": ranks}, allow_nan=False)
                    (part / _VALUES).write_text(text, encoding="utf-8")
                    written.append(part / _VALUES)
                return {file.name: _fingerprint(file) for file in written}

        files = {
            name: item for of_rank in coordinator.on_all_ranks(values_and_hashes) for name, item in of_rank.items()
        }

        def manifest() -> None:
            with disk_errors_are_user_errors(path):
                (part / _MANIFEST).write_bytes(_manifest.dump_json(dict(sorted(files.items())), indent=1))

        coordinator.on_rank_0(manifest)
    coordinator.on_rank_0(lambda: _prune(path, keep))
    return path


def newest_training(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run, of whose files none is read; None: it has none."""
    return next((path for path in reversed(_checkpoints(run_dir / "checkpoints")) if is_checkpoint(path)), None)


def latest_training(run_dir: Path, coordinator: Coordinator = ALONE) -> Path | None:
    """The newest checkpoint of a run that is whole, or None; torn ones are named in a warning and passed over.

    The ranks share the reading, and all get the same answer.
    """
    for path in reversed(coordinator.on_rank_0(lambda: _checkpoints(run_dir / "checkpoints"))):
        problems = coordinator.on_all_ranks(lambda path=path: _problem(path, coordinator))
        problem = next((found for found in problems if found is not None), None)
        if problem is None:
            return path
        if coordinator.rank == 0:
            _log.warning("%s is not whole (%s); going on from the one before", path, problem)
    return None


def checkpoint_at(run_dir: Path, step: int | None) -> Path:
    """The whole checkpoint of a run at ``step``; None: the newest.

    Raises:
        UserError: there is none, or it is damaged; the message lists those that there are.
    """
    found = _checkpoints(run_dir / "checkpoints")
    if step is None:
        path = latest_training(run_dir)
    else:
        path = run_dir / "checkpoints" / f"step_{step:08d}"
        if path in found:
            check_whole(path)
        else:
            path = None
    if path is None:
        there = ", ".join(str(int(one.name.removeprefix("step_"))) for one in found)
        wanted = "no whole checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UserError(
            f"{run_dir} has {wanted}; {f'it has those of steps {there}' if there else 'it has none at all'}."
        )
    return path


def last_checkpoints(run_dir: Path) -> list[Path]:
    """Those of a run, whole or not, in the order of their steps; empty where there are none."""
    return _checkpoints(run_dir / "checkpoints")


def check_whole(path: Path, coordinator: Coordinator = ALONE) -> None:
    """Refuse a checkpoint that is not as it was written; ranks share the reading.

    Raises:
        UserError: what is missing or has changed.
    """
    problem = next(
        (found for found in coordinator.on_all_ranks(lambda: _problem(path, coordinator)) if found is not None), None
    )
    if problem is not None:
        raise UserError(f"{path} is not a whole checkpoint: {problem}. Take an earlier one, or restore it from a copy.")


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a directory as :func:`save_training` writes it."""
    return all((path / name).is_file() for name in (_MANIFEST, _VALUES, INDEX_FILE))


def checkpoint_fingerprint(path: Path) -> str:
    """A hash of all that a whole checkpoint holds, by its manifest."""
    return hashlib.sha256((path / _MANIFEST).read_bytes()).hexdigest()


def read_values(path: Path) -> Any:
    """The values of the checkpoint ``path`` that are the same on all ranks."""
    return json.loads((path / _VALUES).read_text(encoding="utf-8"))["run"]


def newest_values(run_dir: Path) -> Any | None:
    """The values of the newest checkpoint of which they can be read, its tensors unchecked; None where there is none.

    What a run has done is asked for at every start, and must not cost the reading of all tensors.
    """
    for path in reversed(_checkpoints(run_dir / "checkpoints")):
        try:
            expected = _manifest.validate_json((path / _MANIFEST).read_bytes())[_VALUES]
            if _fingerprint(path / _VALUES) == expected:
                return read_values(path)
        except (OSError, ValueError, KeyError):
            continue
    return None


def fork_training(source: Path, run_dir: Path, values: Any) -> None:
    """Give the run ``run_dir`` the checkpoint ``source`` of another, with other values for all ranks.

    Files of tensors are linked where the file system can, since none is ever written to again, and copied elsewhere.

    Raises:
        UserError: the disk fails.
    """
    with atomic_directory(run_dir / "checkpoints" / source.name) as part:
        manifest = _manifest.validate_json((source / _MANIFEST).read_bytes())
        for name in manifest.keys() - {_VALUES}:
            link_or_copy(source / name, part / name)
        saved = json.loads((source / _VALUES).read_text(encoding="utf-8"))
        (part / _VALUES).write_text(json.dumps(saved | {"run": values}, allow_nan=False), encoding="utf-8")
        manifest[_VALUES] = _fingerprint(part / _VALUES)
        (part / _MANIFEST).write_bytes(_manifest.dump_json(dict(sorted(manifest.items())), indent=1))


def load_training(
    path: Path,
    tensors: Mapping[str, "TensorPiece"],
    coordinator: Coordinator = ALONE,
    *,
    only: Callable[[str], bool] = lambda _: True,
) -> Values:
    """Fill ``tensors`` in place from the checkpoint ``path``, and return its values.

    Args:
        path: as :func:`latest_training` gave it.
        tensors: what this rank holds, in whatever parts; all ranks' names, shapes and dtypes are those that were saved.
        coordinator: the ranks.
        only: which names of those that were saved are asked for; the others are left where they are.

    Raises:
        UserError: names, shapes or dtypes differ; on all ranks, with everything that is wrong on any (nothing was
            changed).
    """
    from leyden.checkpoint.pieces import load_pieces

    check_training(path, tensors, coordinator, only=only)
    coordinator.on_all_ranks(lambda: load_pieces(path, tensors))
    saved = read_json(path / _VALUES)
    ranks = saved.get("ranks")
    if "run" not in saved or not isinstance(ranks, list) or not ranks:
        raise UserError(f"{path / _VALUES} is damaged: it should hold 'run' and 'ranks'.")
    return Values(saved["run"], ranks[0] if len(ranks) == 1 else dict(enumerate(ranks)).get(coordinator.rank))


def _of_ranks(value: Any, coordinator: Coordinator) -> list[Any]:
    """Every rank's ``value``; one, where they are the same."""
    hashes = coordinator.on_all_ranks(lambda: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest())
    return [value] if len(set(hashes)) == 1 else coordinator.on_all_ranks(lambda: value)


def check_training(
    path: Path,
    tensors: Mapping[str, "TensorPiece"],
    coordinator: Coordinator = ALONE,
    *,
    only: Callable[[str], bool] = lambda _: True,
) -> None:
    """Refuse tensors that are not those of the checkpoint ``path``; nothing is read of them.

    Raises:
        UserError: as :func:`load_training` says.
    """
    saved = {name: tensor for name, tensor in read_index(path).items() if only(name)}

    def compare() -> tuple[set[str], list[str], bytes]:
        """What this rank misses, what it has otherwise, and for each saved name whether it has it."""
        both = sorted(tensors.keys() & saved.keys())
        others = [problem for name in both for problem in _difference(name, saved[name], tensors[name])]
        return set(tensors.keys() - saved.keys()), others, bytes(name in tensors for name in saved)

    everyone = coordinator.on_all_ranks(compare)
    known = [any(flags) for flags in zip(*(flags for _, _, flags in everyone), strict=True)]
    missing = sorted(set().union(*(missing for missing, _, _ in everyone)))
    unknown = sorted(name for name, is_known in zip(saved, known, strict=True) if not is_known)
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is unknown to this run" for name in unknown]
    problems += dict.fromkeys(problem for _, others, _ in everyone for problem in others)
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{path} belongs to another model: {'; '.join(problems[:8])}{more}. "
            "Resume with the recipe that wrote it, or train in a new directory."
        )


def _difference(name: str, saved: SavedTensor, piece: "TensorPiece") -> list[str]:
    here = str(piece.tensor.dtype).removeprefix("torch."), piece.part.shape
    if (saved.dtype, saved.shape) == here:
        return []
    return [f"{name} is torch.{saved.dtype} {list(saved.shape)} there and torch.{here[0]} {list(here[1])} here"]


class _Fingerprint(Config):
    """What the manifest says of one file."""

    bytes: int
    sha256: str


_manifest = TypeAdapter(dict[str, _Fingerprint])


def _fingerprint(file: Path) -> _Fingerprint:
    with file.open("rb") as stream:
        return _Fingerprint(bytes=file.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def _problem(path: Path, coordinator: Coordinator) -> str | None:
    """Why a checkpoint is not whole, or None; each rank looks into its share of the files."""
    try:
        manifest = _manifest.validate_json((path / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return f"{_MANIFEST} cannot be read"
    if INDEX_FILE not in manifest:
        return f"{INDEX_FILE} is missing"
    for name, expected in list(manifest.items())[coordinator.rank :: coordinator.size]:
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
            discard(path)
    remove_leftovers(newest.parent, below=False)
