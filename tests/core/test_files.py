"""Files and directories are whole or as they were, whatever happens while they are written."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from leyden.core.errors import UserError
from leyden.core.files import atomic_directory, atomic_file, discard, remove_leftovers


def write_file(path: Path, text: str, error: Exception | None = None) -> None:
    with atomic_file(path) as part:
        part.write_text(text)
        if error is not None:
            raise error


def write_directory(path: Path, text: str, error: Exception | None = None) -> None:
    with atomic_directory(path) as part:
        (part / "inner").mkdir()
        (part / "inner" / text).write_text(text)
        if error is not None:
            raise error


def content(path: Path) -> object:
    """What there is under a name, hidden files in folders included."""
    if path.is_dir():
        return {item.name: content(item) for item in path.iterdir()}
    return path.read_text()


Write = Callable[..., None]
both = pytest.mark.parametrize("write", [write_file, write_directory])


@both
def test_written_then_replaced(tmp_path: Path, write: Write) -> None:
    place = tmp_path / "deep" / "place"
    write(place, "old")
    write(place, "new")
    assert content(tmp_path / "deep") == {"place": "new" if write is write_file else {"inner": {"new": "new"}}}


@both
def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "place", "old")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="broken"):
        write(tmp_path / "place", "new", ValueError("broken"))
    assert content(tmp_path) == before


@both
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_user_error(tmp_path: Path, write: Write, number: int) -> None:
    write(tmp_path / "place", "old")
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"place could not be written: the disk is full \(\d+ MB free\).*run the same"):
        write(tmp_path / "place", "new", OSError(number, os.strerror(number)))
    assert content(tmp_path) == before


@both
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "the disk failed"),
        (errno.ESTALE, "the disk failed"),
        (errno.EACCES, "permissions"),
        (errno.ENOTDIR, "refuses it"),
        (errno.EMFILE, "too many files"),
    ],
)
def test_every_error_of_a_disk_is_a_user_error(tmp_path: Path, write: Write, number: int, words: str) -> None:
    with pytest.raises(UserError, match=f"place could not be written: .*{words}.*run the same"):
        write(tmp_path / "place", "new", OSError(number, os.strerror(number)))
    assert content(tmp_path) == {}


@both
def test_an_error_of_a_library_in_rust_is_one_too(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match="the disk is full"):
        write(tmp_path / "place", "new", RuntimeError("I/O error: No space left on device (os error 28)"))


@both
@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "no"), FileNotFoundError(errno.ENOENT, "no")])
def test_another_error_of_the_system_stays_what_it_is(tmp_path: Path, write: Write, error: OSError) -> None:
    with pytest.raises(type(error)):
        write(tmp_path / "place", "new", error)
    assert content(tmp_path) == {}


def test_what_stands_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/place could not be written"):
        write_file(tmp_path / "file" / "place", "new")


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as part:
            part.touch(0o600)  # as libraries do that write by a temporary file
        with atomic_directory(tmp_path / "folder") as part:
            (part / "file").touch(0o600)
        with atomic_file(tmp_path / "private", mode=0o600) as part:
            part.write_text("secret")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder/file", "private")]
    assert modes == [0o640, 0o640, 0o600]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "two steps"])
def test_a_directory_is_replaced_with_and_without_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("leyden.core.files._exchange", lambda *_: False)
    write_directory(tmp_path / "place", "old")
    write_directory(tmp_path / "place", "new")
    assert content(tmp_path) == {"place": {"inner": {"new": "new"}}}


def test_what_a_kill_between_two_steps_left_is_put_back(tmp_path: Path) -> None:
    write_directory(tmp_path / "place", "old")
    before = content(tmp_path / "place")
    (tmp_path / "place").rename(tmp_path / ".place.old")
    with pytest.raises(ValueError, match="broken"):
        write_directory(tmp_path / "place", "new", ValueError("broken"))
    assert content(tmp_path) == {"place": before}


@both
def test_a_disk_full_when_the_data_reaches_it(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "place", "old")
    before = content(tmp_path)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="the disk is full"):
            write(tmp_path / "place", "new")
    assert content(tmp_path) == before


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_directory"])
def test_a_process_killed_while_writing_leaves_the_old_one(tmp_path: Path, kind: str) -> None:
    write: Write = write_file if kind == "atomic_file" else write_directory
    write(tmp_path / "place", "old")
    old = content(tmp_path / "place")
    program = (
        f"import os, pathlib, sys; from leyden.core.files import {kind}\n"
        f"with {kind}(pathlib.Path(sys.argv[1])) as part:\n"
        "    file = part / 'half' if part.is_dir() else part\n"
        "    file.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "place")], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert content(tmp_path / "place") == old
    assert (tmp_path / ".place.part").exists()
    write(tmp_path / "place", "new")  # and what was left behind is in nobody's way
    assert sorted(item.name for item in tmp_path.iterdir()) == ["place"]
    assert content(tmp_path / "place") != old


def test_a_directory_that_two_lives_wrote_holds_the_second_alone(tmp_path: Path) -> None:
    (tmp_path / ".place.part").mkdir()
    (tmp_path / ".place.part" / "left").write_text("by a crash")
    manager: AbstractContextManager[Path] = atomic_directory(tmp_path / "place")
    with manager as part:
        assert list(part.iterdir()) == []
        (part / "mine").write_text("mine")
    assert content(tmp_path) == {"place": {"mine": "mine"}}


def test_what_is_half_removed_is_never_taken_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_directory(tmp_path / "scratch", "one")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.unlink", _interrupted)
        discard(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    write_directory(tmp_path / "scratch", "two")  # brings back nothing of the older one
    remove_leftovers(tmp_path)
    assert content(tmp_path) == {"scratch": {"inner": {"two": "two"}}}
    discard(tmp_path / "scratch")
    discard(tmp_path / "scratch")
    assert content(tmp_path) == {}


def test_leftovers_go_and_nothing_else_does(tmp_path: Path) -> None:
    for name in (".a.part", "in/.b.part", "in/c.part", ".d.old", "e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in (".f.part", "in/.g.gone", "in/.h.old"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, below=False)
    assert {".b.part", ".g.gone", ".h.old"} <= {path.name for path in (tmp_path / "in").iterdir()}
    remove_leftovers(tmp_path)
    assert content(tmp_path) == {"in": {"c.part": "in/c.part", "h": {}}, ".d.old": ".d.old", "e": "e"}


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
