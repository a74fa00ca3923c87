"""Threads sleep while they wait where other programs hold the cores when a command starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from leyden.core import waiting


@pytest.fixture(autouse=True)
def nobody_has_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "RANK"):
        monkeypatch.delenv(name, raising=False)


def measured(monkeypatch: pytest.MonkeyPatch, *cores: float) -> None:
    samples = iter(cores)
    monkeypatch.setattr(waiting, "cores_of_others", lambda: next(samples))


def test_beside_other_programs_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1.0, 0.9, 0.6)
    assert waiting.waiting_settings() == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("cores", [(0.2,), (1.0, 0.1), (1.0, 1.0, 0.4)])
def test_on_idle_cores_and_beside_what_ends_they_spin(
    monkeypatch: pytest.MonkeyPatch, cores: tuple[float, ...]
) -> None:
    measured(monkeypatch, *cores)
    assert waiting.waiting_settings() == {}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RANK"])
def test_what_the_user_said_holds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    measured(monkeypatch, 2.0, 2.0, 2.0)
    monkeypatch.setenv(name, "1")
    assert waiting.waiting_settings() == {}


def test_cores_are_counted_from_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, ticks = tmp_path / "stat", waiting.os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu {10 * ticks} {ticks} {2 * ticks} {500 * ticks} {9 * ticks} 0 0 {3 * ticks} 0 0\ncpu0 1\n")
    monkeypatch.setattr(waiting, "_STAT", stat)
    assert waiting._busy_seconds() == 16
    stat.write_text("cpu what\n")
    assert waiting._busy_seconds() is None and waiting.cores_of_others() == 0
    monkeypatch.setattr(waiting, "_STAT", tmp_path / "missing")
    assert waiting.cores_of_others() == 0


def test_after_pytorch_nothing_is_settled() -> None:
    """And before it the environment says how threads wait."""
    program = """
import json, os, sys
from leyden.core import waiting
waiting.cores_of_others = lambda: 1.5
first = [waiting.settle_waiting(), os.environ.get("OMP_WAIT_POLICY")]
assert "torch" not in sys.modules
del os.environ["OMP_WAIT_POLICY"]
sys.modules["torch"] = None
print(json.dumps([first, waiting.settle_waiting(), os.environ.get("OMP_WAIT_POLICY")]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1.5, "PASSIVE"], None, None]
