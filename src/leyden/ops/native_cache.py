"""Where compiled code is kept: a folder that nobody else can write to, since what lies in it is run."""

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


def private_folder() -> Path:
    """The folder of the user's cache for compiled code, made if it is missing.

    Where it cannot be written, or is open to others, the folder is one in the directory for temporary files, and one
    line says so. The directory is ``$XDG_CACHE_HOME/leyden``, or ``~/.cache/leyden``.

    Raises:
        OSError: there is no such folder either.
    """
    reasons = []
    for folder in _candidates():
        reason = _make_private(folder)
        if reason is None:
            if reasons:
                _log.info(
                    "compiled code is kept in %s (%s); set XDG_CACHE_HOME to a directory of your own that can be "
                    "written, and it is kept there",
                    folder,
                    "; ".join(reasons),
                )
            return folder
        reasons.append(f"{folder} {reason}")
    raise OSError("; ".join(reasons))


def refuse_others(file: Path) -> None:
    """See to it that nobody but this user, or the system's administrator, could have written ``file``.

    Raises:
        OSError: somebody else could.
    """
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode) or not _is_ours(found):
        raise OSError(f"{file} belongs to another user, or others may write to it; remove it")


def _candidates() -> Iterator[Path]:
    cache = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # there is no home
        yield Path(cache or Path.home() / ".cache") / "leyden"
    yield Path(tempfile.gettempdir()) / f"leyden-{os.getuid()}"


def _make_private(folder: Path) -> str | None:
    """Make a folder; why it will not do, or None."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode) or not _is_ours(found):
        return "belongs to another user, or others may write to it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    return None


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.getuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
