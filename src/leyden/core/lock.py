"""A lock on a folder, so that two processes never write to one."""

import contextlib
import datetime as dt
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.files import disk_errors_are_user_errors
from leyden.core.log import logger
from leyden.core.printable import printable

_LOOKS, _LOOK_SECONDS = 4, 0.02
LOCK = ".lock"
"""The name of the file in the folder; it says who holds the lock, and is gone when nobody does."""


@contextmanager
def folder_lock(folder: Path, doing: str) -> Iterator[None]:
    """Hold ``folder`` for the block, as the only process of all that ask by this function.

    The folder is made where it does not exist, and removed again where the block leaves it empty. The system gives the
    lock back when the process ends in any way. Of several ranks one takes it for all.

    Args:
        folder: which the block writes to.
        doing: what, in words that go on from "it": ``"trains a run"``.

    Raises:
        UserError: another process holds it (which, on which host, since when, and what it does), or the folder cannot
            be written to.
    """
    with disk_errors_are_user_errors(folder / LOCK):
        made = not folder.exists()
        descriptor = _acquire(folder)
    try:
        if descriptor is not None:
            with disk_errors_are_user_errors(folder / LOCK):
                (folder / LOCK).write_text(json.dumps(_holder(doing)), encoding="utf-8")
        yield
    finally:
        if descriptor is not None:
            # Removed while it is held: who waits for it sees that its file is no longer the folder's, and opens anew.
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def lock_holder(folder: Path) -> str | None:
    """Who holds the lock of ``folder``, in words; None where nobody does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _told(descriptor)
    finally:
        os.close(descriptor)
    return None


def _acquire(folder: Path) -> int | None:
    """The open file of the lock; None where the file system has no locks, which is said."""
    access = os.O_RDONLY  # no file stays open for writing, which would keep a failing disk from being made read-only
    patience = _LOOKS
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, access | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # who held the lock has just removed the folder that it had made
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = _told(descriptor)
            os.close(descriptor)
            patience -= 1
            if patience:  # it may be one who looks who holds it, which takes no time
                time.sleep(_LOOK_SECONDS)
                continue
            raise UserError(
                f"{folder} is in use: {told}. Wait until it ends, or stop it, or name another folder."
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EBADF and access == os.O_RDONLY:
                access = os.O_RDWR  # NFS locks none but files that may be written
                continue
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            logger(__name__).warning("%s: this file system has no locks; start no second process here.", folder)
            return None
        if _is_the_file(descriptor, folder / LOCK):
            return descriptor
        os.close(descriptor)


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(doing: str) -> dict[str, object]:
    since = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "doing": doing}


def _told(descriptor: int) -> str:
    """What the lock says of its holder."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        told = f"process {said['pid']} on {said['host']} {said['doing']} there since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process holds its lock"
    return printable(told)
