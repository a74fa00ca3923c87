"""What ``leyden info --machine`` says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from leyden.ops import machine, native
from leyden.ops.native import processor


def test_every_field_is_a_line(leyden_cli: Callable[..., object]) -> None:
    lines = leyden_cli("info", "--machine").out.splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert [line.split("  ")[0] for line in lines] == [*machine.FIELDS, "sandbox"]
    assert all(line.split(maxsplit=1)[1:] for line in lines)


def test_why_the_ops_run_in_pytorch_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    native.load.cache_clear()
    try:
        said = machine.machine_text()
    finally:
        native.load.cache_clear()
    assert "PyTorch: there is no C++ compiler" in said
    assert str(tmp_path) not in said


def test_a_machine_whose_kernel_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling for an unknown processor takes a minute
    processor._first.cache_clear()
    native.load.cache_clear()
    try:
        assert processor.features() == frozenset()
        assert processor.name() and processor.identity()
        assert native._prebuilt() is None
        assert "not known" in machine.machine_text()
        (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: One\nflags\t\t: fpu avx2\n\nflags\t: none\n")
        processor._first.cache_clear()
        assert processor.name() == "One"
        assert processor.features() == {"fpu", "avx2"}
    finally:
        processor._first.cache_clear()
        native.load.cache_clear()


def test_nothing_to_tell_of(leyden_cli: Callable[..., object]) -> None:
    outcome = leyden_cli("info")
    assert outcome.code and "or --machine" in outcome.err  # pyright: ignore[reportAttributeAccessIssue]
