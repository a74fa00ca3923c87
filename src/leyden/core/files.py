"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed into it."""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leyden.core.errors import UserError

_EXCHANGE = 2
"""``RENAME_EXCHANGE`` of Linux: two names change places at once."""
_AT_THIS_DIRECTORY = -100


@contextmanager
def atomic_file(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a path to write to; on a clean exit it becomes ``path``, on an error it is removed.

    Args:
        path: of the file.
        mode: its permissions; left out, those that the umask gives, whatever library writes it.

    Raises:
        UserError: the disk is full, read-only, or fails in another way.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_errors_are_user_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.chmod(mode if mode is not None else 0o666 & ~_umask())
            _flush(part)
            os.replace(part, path)
            _flush(path.parent)
    finally:
        _remove(part)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory to fill; on a clean exit it becomes ``path`` (replacing it), else it is removed.

    Its files get the permissions that the umask gives, whatever library writes them.

    Raises:
        UserError: the disk is full, read-only, or fails in another way.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with disk_errors_are_user_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _recover(path)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            mode = 0o666 & ~_umask()
            for item in part.rglob("*"):
                if not item.is_dir():
                    item.chmod(mode)
                _flush(item)
            _flush(part)
            _swap(part, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a file that somebody else may have made: a regular file of a bounded size, in UTF-8.

    A named pipe would be waited for without end, and a device read without end.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no regular file, is larger than ``max_bytes``, cannot be read, or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a {'directory' if path.is_dir() else 'special file'}; it should be a regular file.")
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(data) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes, which is more than such a file may have.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); it should be a text file.") from None


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file that nobody will write to a second name; where the file system cannot, a copy."""
    try:
        if os.stat(source).st_uid != os.geteuid():
            raise PermissionError  # a second name of another user's file would keep that user's permissions
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _swap(part: Path, path: Path) -> None:
    """Put the finished directory in place of the older one: at once where the system can, else in two steps."""
    if not path.exists():
        os.replace(part, path)
    elif not _exchange(part, path):
        old = _old(path)
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system has no such step."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_THIS_DIRECTORY, os.fsencode(one), _AT_THIS_DIRECTORY, os.fsencode(other), _EXCHANGE) == 0


def _recover(path: Path) -> None:
    """Put the older directory back, if the process was killed between the two steps of a swap."""
    if _old(path).exists() and not path.exists():
        os.replace(_old(path), path)
    shutil.rmtree(_old(path), ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a file, or a directory with all that is in it; nothing is done where there is none.

    A directory is renamed aside first, so that one of which a part is left is never taken for the whole;
    :func:`remove_leftovers` removes what a killed process leaves of it.

    Raises:
        UserError: the disk does not allow it.
    """
    with disk_errors_are_user_errors(path):
        if path.is_dir() and not path.is_symlink():
            gone = path.with_name(f".{path.name}.gone")
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(path, gone)
            shutil.rmtree(gone)
        else:
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, below: bool = True) -> None:
    """Remove what killed processes left half written or half removed, by the names that this module gives it.

    Args:
        folder: which no other process writes to.
        below: look into the folders in it as well.
    """
    for path in list(folder.rglob(".*") if below else folder.glob(".*")):
        if path.name.endswith((".part", ".gone")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else _remove(path)
        elif path.name.endswith(".old") and path.is_dir():
            _recover(path.with_name(path.name[1 : -len(".old")]))


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _remove(part: Path) -> None:
    """Remove what was not finished; where the disk does not let us, the error that is under way says why."""
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return


def _umask() -> int:
    """The process's umask, read without changing it where the system tells it."""
    try:
        match = re.search(r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
        if match:
            return int(match[1], 8)
    except OSError:
        pass
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors_are_user_errors(path: Path) -> Iterator[None]:
    """Turn whatever a disk can answer while ``path`` is written into a UserError of one paragraph.

    An error that says nothing of the disk stays what it is. Libraries in Rust raise errors of their own, with the
    system's number in their words; those count, too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _disk_reason(error, path)
        if reason is None:
            raise
        elsewhere = _elsewhere(error, path)
        raise UserError(
            f"{path} could not be written: {reason[0]}{elsewhere}. What was there before is untouched; {reason[1]}, or "
            "name another directory, and run the same command again."
        ) from None


def _disk_reason(error: Exception, path: Path) -> tuple[str, str] | None:
    """What is wrong with the disk and what to do, where ``error`` says so."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({_free(path)})", "free some space"
    if number in (errno.EACCES, errno.EPERM):
        return "its permissions do not allow it", "change them"
    if number == errno.EROFS:
        return "the file system is read-only", "make it writable"
    if number in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN):
        return f"the disk failed ({os.strerror(number)})", "see to the disk"
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG):
        return f"the system refuses it ({os.strerror(number)})", "look at what stands in its place"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "raise the limit (ulimit -n)"
    if number == errno.ENOENT and not path.parent.exists():
        return f"the folder {path.parent} is gone", "bring it back"
    return None


def _elsewhere(error: Exception, path: Path) -> str:
    """The file that the error is about, where it is not among those that were written."""
    name = error.filename if isinstance(error, OSError) else None
    return f" ({name})" if isinstance(name, str) and path.parent not in Path(name).parents else ""


def _free(path: Path) -> str:
    place = next(folder for folder in path.absolute().parents if folder.exists())
    return f"{shutil.disk_usage(place).free / 1e6:.0f} MB free"
