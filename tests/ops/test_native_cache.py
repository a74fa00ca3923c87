"""Compiling the native bodies, and what becomes of the library: kept, found again, refused, made anew."""

import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leyden.ops import native
from leyden.ops.native import build, cache

needs_compiler = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")

_SCRIPT = """#!/bin/sh
for last; do :; done
echo call >> "$(dirname "$0")/log"
{}
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, another folder for temporary files, and a process that has loaded nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    native.load.cache_clear()
    yield tmp_path
    native.load.cache_clear()


def compiler(folder: Path, body: str) -> Path:
    """A compiler that is a shell script; ``$last`` is the file it should write."""
    script = folder / "c++"
    script.write_text(_SCRIPT.format(body))
    script.chmod(0o700)
    return script


@pytest.fixture(scope="module")
def whole() -> Path:
    """The library of this process, whose bytes a test may take for its own."""
    return native.library().path


def calls(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("printf 'In x.h:\\nx.h:1: error: no y\\n' >&2; exit 1", r"failed: x\.h:1: error: no y$"),
        ("kill -SEGV $$", r"failed: signal 11$"),
        ("exit 3", r"failed: exit code 3$"),
        ("echo 'not a library' > \"$last\"", r"cannot be kept or loaded \(.*"),
    ],
)
def test_why_there_is_no_library_is_said(fresh: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str) -> None:
    monkeypatch.setenv("CXX", str(compiler(fresh, body)))
    with pytest.raises(native.UnavailableError, match=reason):
        native.library()
    assert "\n" not in str(native.load())


@pytest.mark.parametrize("name", ["no-such-compiler", "'unbalanced", "/", "-O2"])
def test_a_name_that_is_no_compiler_is_said(fresh: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CXX", name)
    with pytest.raises(native.UnavailableError, match=r"no C\+\+ compiler|cannot be read|cannot be run"):
        native.library()


def test_a_compiler_may_hide_behind_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env c++ -O1 '-DX=a b'")
    assert build.Compiler.find() == build.Compiler(("env", "c++"), ("-O1", "-DX=a b"))


@pytest.mark.parametrize("name", ["", None])
def test_no_name_means_the_usual_compiler(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.delenv("CXX", raising=False) if name is None else monkeypatch.setenv("CXX", name)
    assert build.Compiler.find() == build.Compiler(("c++",))


@needs_compiler
def test_an_upgrade_of_the_compiler_is_another_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = compiler(fresh, "exit 1")
    monkeypatch.setenv("CXX", str(script))
    before = build.Compiler.find().identity()
    assert build.Compiler.find().identity() == before
    os.utime(script, (1, 1))
    assert build.Compiler.find().identity() != before


@needs_compiler
def test_the_library_is_compiled_once_and_found_without_a_compiler(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(compiler(fresh, f'cp "{whole}" "$last"')))
    with caplog.at_level(logging.INFO):
        first = native.library()
        made = calls(fresh)
        native.load.cache_clear()
        assert native.library().path == first.path
    assert calls(fresh) == made > 1
    assert len(caplog.records) == 1
    assert {path.suffix for path in (fresh / "cache" / "leyden").iterdir()} <= {".so", ".lock"}
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.load.cache_clear()
    found = native.library()
    assert (found.path, found.origin) == (first.path, "compiled for this processor before")


@needs_compiler
@pytest.mark.parametrize("damage", ["cut off", "changed", "empty"])
def test_a_damaged_library_is_made_anew(fresh: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, damage: str) -> None:
    monkeypatch.setenv("CXX", str(compiler(fresh, f'cp "{whole}" "$last"')))
    path = native.library().path
    contents = bytearray(path.read_bytes())
    path.unlink()  # it is mapped into this process
    if damage == "cut off":
        path.write_bytes(contents[: len(contents) // 2])
    elif damage == "changed":
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)
    else:
        path.touch()
    native.load.cache_clear()
    before = calls(fresh)
    assert native.library().path == path
    assert calls(fresh) > before
    assert cache.digest(path) == cache.digest(whole)


@needs_compiler
def test_other_versions_and_scratch_are_removed_in_the_end(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    folder = fresh / "cache" / "leyden"
    (folder / "build-killed").mkdir(parents=True)
    folder.chmod(0o700)
    os.utime(folder / "build-killed", (1, 1))
    (folder / "build-running").mkdir()
    for age in range(30):
        text = f"version {age}".encode()
        path = folder / "part"
        path.write_bytes(text)
        path = path.rename(folder / f"ops-{age:016x}-{cache.digest(path)}.so")
        os.utime(path, (1e9 - age, 1e9 - age))
    (folder / "ops-0123456789abcdef.so").write_bytes(b"named as versions before named them")
    monkeypatch.setenv("CXX", str(compiler(fresh, f'cp "{whole}" "$last"')))
    path = native.library().path
    left = sorted(folder.glob("ops-*.so"))
    assert len(left) <= cache._MOST_FILES
    assert path in left
    assert folder / f"ops-{29:016x}-{cache.digest(left[0])}.so" not in left
    assert [scratch.name for scratch in folder.glob("build-*")] == ["build-running"]


@needs_compiler
def test_processes_that_start_together_compile_once(fresh: Path, whole: Path) -> None:
    """The compiler here takes a while, and has the result already."""
    linking = 'case "$*" in *-shared*) echo linked >> "$(dirname "$0")/linked"; sleep 1;; esac'
    script = compiler(fresh, f'{linking}\ncp "{whole}" "$last"')
    environment = {**os.environ, "CXX": str(script), "XDG_CACHE_HOME": str(fresh / "cache")}
    command = [sys.executable, "-c", "from leyden.ops import native; native.library()"]
    together = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(120) for process in together] == [0, 0]
    assert (fresh / "linked").read_text() == "linked\n"


@pytest.fixture
def folders(fresh: Path) -> tuple[Path, Path]:
    """The user's cache, and the one for want of it."""
    return fresh / "cache" / "leyden", fresh / "tmp" / f"leyden-{os.getuid()}"


def keep(text: str = "code") -> Path:
    """A file that is kept, in place of a library."""
    return cache.make("ops-a", lambda path: path.write_text(text), lambda path: path)


@pytest.mark.parametrize("trouble", ["others write", "group writes", "link", "file", "another user", "no home", "full"])
def test_the_next_folder_is_taken_and_said(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    folder, other = folders
    folder.mkdir(parents=True)
    if trouble.endswith(("write", "writes")):
        folder.chmod(0o777 if trouble.startswith("others") else 0o770)
    elif trouble == "link":
        folder.rename(folder.parent / "elsewhere")
        folder.symlink_to(folder.parent / "elsewhere")
    elif trouble == "file":
        folder.rmdir()
        folder.touch()
    elif trouble == "another user":
        if os.getuid():
            pytest.skip("only root may give a folder away")
        os.chown(folder, 12345, -1)
    elif trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))

    def write(path: Path) -> None:
        if trouble == "full" and path.is_relative_to(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text("code")

    with caplog.at_level(logging.INFO):
        path = cache.make("ops-a", write, lambda path: path)
    assert path.parent == other
    assert stat.S_IMODE(other.stat().st_mode) == 0o700
    assert len(caplog.records) == (trouble != "no home")
    if caplog.records:
        assert "set XDG_CACHE_HOME to a directory of your own" in caplog.text


def test_nowhere_to_keep_it_is_an_error_that_names_the_places(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"file/leyden: .*; .*file/leyden-"):
        keep()


@pytest.mark.parametrize("reason", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_is_not_the_compilers_fault(fresh: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setenv("CXX", str(compiler(fresh, f"echo 'cc1plus: fatal error: x.o: {reason}' >&2; exit 1")))
    with pytest.raises(OSError, match=reason):
        build.compile_library(build.Compiler.find(), (), fresh / "ops.so")


def test_a_folder_that_cannot_be_written_is_still_read(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep()
    path.parent.chmod(0o500)
    monkeypatch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    assert cache.find("ops-a", lambda path: path) == path
    assert cache.find("ops-b", lambda path: path) is None
    path.parent.chmod(0o700)


@pytest.mark.parametrize("kind", ["others write", "link", "another user"])
def test_a_file_of_somebody_else_is_not_run(folders: tuple[Path, Path], kind: str) -> None:
    path = keep()
    if kind == "others write":
        path.chmod(0o666)
    elif kind == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    else:
        if os.getuid():
            pytest.skip("only root may give a file away")
        os.chown(path, 12345, -1)
    assert cache.find("ops-a", lambda path: path) is None


def test_a_library_of_something_else_is_refused() -> None:
    with pytest.raises(OSError, match="leyden"):
        native.Library(Path("libm.so.6"), "elsewhere")
