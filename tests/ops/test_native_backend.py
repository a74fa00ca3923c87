"""When the native bodies run, and what is said when they cannot."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leyden.ops import backend, native, native_cache, rms_norm

WEIGHT = torch.ones(8)

_FAILING = """#!/bin/sh
case "$*" in *-dM*) exit;; esac
printf 'In x.h:\\nx.h:1: error: no y\\n' >&2
exit 1
"""


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine without a compiler, where nothing was compiled before."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.cache_clear()
    backend._log_once.cache_clear()
    yield
    native.load.cache_clear()


def test_without_a_compiler_the_ops_run_in_pytorch_and_say_so_once(
    no_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(3, 8)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert torch.equal(rms_norm(x, WEIGHT, 1e-5), rms_norm(x, WEIGHT, 1e-5, "torch"))
    (record,) = caplog.records
    assert "no C++ compiler" in record.getMessage()


def test_native_by_name_never_falls_back(no_compiler: None) -> None:
    with pytest.raises(ValueError, match=r"rms_norm: backend='native' cannot run: there is no C\+\+ compiler"):
        rms_norm(torch.ones(3, 8), WEIGHT, 1e-5, "native")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_in_pytorch(dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(rms_norm(x, WEIGHT, 1e-5), rms_norm(x, WEIGHT, 1e-5, "torch"))
    with pytest.raises(ValueError, match=f"native.*{dtype}"):
        rms_norm(x, WEIGHT, 1e-5, "native")


def test_shapes_that_do_not_fit_are_refused() -> None:
    """A native body must never be handed them: it would read beyond the tensors."""
    with pytest.raises(ValueError, match="weight"):
        rms_norm(torch.ones(3, 9), WEIGHT, 1e-5)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler here")
def test_where_there_is_a_compiler_the_library_is_there() -> None:
    """Else all that is tested natively would be left out in silence."""
    native.library()


def test_why_it_does_not_compile_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(_FAILING)
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load.cache_clear()
    with pytest.raises(native.UnavailableError, match=r"failed: x\.h:1: error: no y$"):
        native.library()
    native.load.cache_clear()


@pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")
def test_the_library_is_compiled_once_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = tmp_path / "ops"  # one of them is enough
    sources.mkdir()
    shutil.copy(native._FOLDER / "rotary" / "native.cpp", sources)
    monkeypatch.setattr(native, "_FOLDER", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            native.load.cache_clear()
            native.library()
    native.load.cache_clear()
    assert {path.suffix for path in (tmp_path / "leyden").iterdir()} <= {".so", ".lock"}
    assert len(caplog.records) == 1


_COMPILER = """#!/bin/sh
case "$*" in *-dM*) exec c++ "$@";; *" -c "*) exit;; esac
echo compiled >> "$(dirname "$0")/log"
sleep 1
for last; do :; done
cp "$COMPILED" "$last"
"""


@pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")
def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    """The compiler here takes a while, and has the result already."""
    compiler = tmp_path / "c++"
    compiler.write_text(_COMPILER)
    compiler.chmod(0o700)
    environment = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path), "COMPILED": native.library()._name}
    command = [sys.executable, "-c", "from leyden.ops import native; native.library()"]
    together = [subprocess.Popen(command, env={**os.environ, **environment}) for _ in range(2)]
    assert [process.wait(120) for process in together] == [0, 0]
    assert (tmp_path / "log").read_text() == "compiled\n"


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_code_in_a_folder_that_others_may_write_to_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    (tmp_path / "cache" / "leyden").mkdir(parents=True)
    (tmp_path / "cache" / "leyden").chmod(mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.INFO):
        folder = native_cache.private_folder()
    assert folder == tmp_path / f"leyden-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    (record,) = caplog.records
    assert "set XDG_CACHE_HOME to a directory of your own" in record.getMessage()


def test_a_home_that_cannot_be_written_means_a_temporary_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.INFO):
        assert native_cache.private_folder() == tmp_path / f"leyden-{os.getuid()}"
    assert "home/.cache" in caplog.records[0].getMessage()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "home"))
    with pytest.raises(OSError, match="cannot be made"):
        native_cache.private_folder()


@pytest.mark.parametrize("kind", ["others write", "link", "another user"])
def test_a_file_of_somebody_else_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "ops.so"
    file.touch(0o700)
    native_cache.refuse_others(file)
    if kind == "others write":
        file.chmod(0o666)
    elif kind == "link":
        file.rename(tmp_path / "elsewhere.so")
        file.symlink_to(tmp_path / "elsewhere.so")
    else:
        os.chown(file, 12345, -1) if os.getuid() == 0 else monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(OSError, match="remove it"):
        native_cache.refuse_others(file)
