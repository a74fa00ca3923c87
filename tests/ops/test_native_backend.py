"""When the native bodies run, and what is said when they cannot."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from leyden.ops import backend, native, rms_norm

WEIGHT = torch.ones(8)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine without a compiler, where nothing was compiled before."""
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
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
