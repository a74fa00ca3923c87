"""The cache of compiled code: a folder that nobody else can write to, since what lies in it is executed.

A file's name ends in the hash of its contents: one that was cut off or changed is not what its name says, and is made
anew. Files are put in place whole, so that processes of one user need not wait for each other to read them.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

_log = logging.getLogger(__name__)
_Used = TypeVar("_Used")

_MOST_FILES = 16
"""Libraries that a folder keeps: of machines that share it, and of other versions."""
_WAIT_SECONDS = 900
_DAY_SECONDS = 86400


def find(stem: str, use: Callable[[Path], _Used]) -> _Used | None:
    """What ``use`` makes of the first sound file whose name begins with ``stem``, or None.

    Args:
        stem: of the name.
        use: takes the file, and raises OSError where that will not do.
    """
    for folder in _candidates():
        if _is_private(folder):
            with contextlib.suppress(OSError):
                for path in _sound(folder, stem):
                    used = use(path)
                    with contextlib.suppress(OSError):
                        os.utime(path)  # the one that was used last goes last
                    return used
    return None


def make(stem: str, build: Callable[[Path], object], use: Callable[[Path], _Used]) -> _Used:
    """What ``use`` makes of a new file, in the first folder where it can be built, kept and used.

    Of processes that need it at the same time one builds it, and the others wait for that. Where the folder of the
    user's cache (``$XDG_CACHE_HOME/leyden``, or ``~/.cache/leyden``) will not do, one line says so and the folder is
    one in the directory for temporary files.

    Args:
        stem: of the name.
        build: writes the file that it is given.
        use: as of :func:`find`.

    Raises:
        OSError: no folder would do.
    """
    reasons = []
    for folder in _candidates():
        try:
            _make_private(folder)
            with FileLock(folder / "ops.lock", timeout=_WAIT_SECONDS):
                path = next(_sound(folder, stem), None) or _build(folder, stem, build)
                used = use(path)
                _forget_others(folder, path)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
            continue
        if reasons:
            _log.info(
                "compiled code is kept in %s (%s); set XDG_CACHE_HOME to a directory of your own that can be written, "
                "and it is kept there",
                folder,
                "; ".join(reasons),
            )
        return used
    raise OSError("; ".join(reasons) or "there is no folder for temporary files")


def folder() -> Path | None:
    """The first folder that holds compiled code and is to be trusted; None before anything was compiled."""
    return next(filter(_is_private, _candidates()), None)


def digest(path: Path) -> str:
    """What a file's name ends in."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _build(folder: Path, stem: str, build: Callable[[Path], object]) -> Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
        part = Path(scratch) / "ops.so"
        build(part)
        path = folder / f"{stem}-{digest(part)}.so"
        return part.replace(path)


def _sound(folder: Path, stem: str) -> Iterator[Path]:
    for path in sorted(folder.glob(f"{stem}-*.so")):
        with contextlib.suppress(OSError):  # another process may remove it
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and _is_ours(found) and path.stem.endswith(f"-{digest(path)}"):
                yield path


def _forget_others(folder: Path, kept: Path) -> None:
    """Remove what damage, older versions and processes that were killed left behind."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("ops-*.so"), key=lambda path: -path.stat().st_mtime)
        for place, path in enumerate(path for path in files if path != kept):
            if place >= _MOST_FILES - 1 or not path.stem.endswith(f"-{digest(path)}"):
                path.unlink()
        for scratch in folder.glob("build-*"):
            if scratch.stat().st_mtime < time.time() - _DAY_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def _candidates() -> Iterator[Path]:
    cache = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # there is no home
        yield Path(cache or Path.home() / ".cache") / "leyden"
    with contextlib.suppress(OSError):  # there is no directory for temporary files
        yield Path(tempfile.gettempdir()) / f"leyden-{os.getuid()}"


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(folder):
        raise OSError("belongs to another user, or others may write to it")


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_ours(found)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.getuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
