"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed into it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leyden.core.errors import UserError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on a clean exit it becomes ``path``, on an error it is removed.

    Raises:
        UserError: the disk is full (or a quota is).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_full_is_a_user_error(path):
            yield part
            _flush(part)
            os.replace(part, path)
            _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory to fill; on a clean exit it becomes ``path`` (replacing it), else it is removed.

    Raises:
        UserError: the disk is full (or a quota is).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with disk_full_is_a_user_error(path):
            yield part
            for item in part.rglob("*"):
                _flush(item)
            _flush(part)
            _swap(part, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, path: Path) -> None:
    """Put the finished directory in place; an older one is moved aside first, then removed."""
    if not path.exists():
        os.replace(part, path)
        return
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(part, path)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_full_is_a_user_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" while writing ``path`` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path} could not be written: the disk is full ({free / 1e6:.0f} MB free). What was there before is "
            "untouched; free some space, or name another directory, and run the same command again."
        ) from None
