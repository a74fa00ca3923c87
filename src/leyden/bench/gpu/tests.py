"""The GPU tests, a file a process: one that crashes, hangs or comes too late ends alone."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import leyden

CHECKOUT = Path(leyden.__file__).parents[2]

_SERVING = ("pydantic", "tokenizers", "rich", "jinja2")
"""Packages."""

_AT_ONCE = 4
"""Files; most of their time they compile kernels, on a core each."""

_MODELS = "training step|utilisation|engine|hybrid layers"
_TOUCHED = {
    "launching": ".",
    "serve/": "engine",
    "lightning": f"lightning|against|decode step|prefill and decode|{_MODELS}",
    "gated_linear": "gated linear",
    "paged_attention": "paged attention|engine",
    "softmax_attention": f"against causal softmax|{_MODELS}",
    "rms_norm": f"rms_norm|{_MODELS}",
    "silu_split": f"silu_split|{_MODELS}",
    "rotary": f"rotary|{_MODELS}",
    "routing": f"routing|experts|MoE|{_MODELS}",
    "experts": "experts|MoE",
    "cross_entropy": "cross-entropy|training step|utilisation",
}
"""By what the name of a file of tests holds, the rows that rest on what it tests."""


@dataclass(frozen=True)
class FileResult:
    """What came of one file.

    Attributes:
        file: its place in ``tests``.
        outcome: ``"red"`` also where its process crashed; ``"not run"`` where there was no time, or no test or pytest.
        seconds: that it took.
        failures: the names of the tests that failed, or the last of what its process said.
    """

    file: str
    outcome: Literal["green", "red", "not run"]
    seconds: float = 0.0
    failures: tuple[str, ...] = ()

    def touches(self, work: str) -> bool:
        """Whether the row of this name rests on what the file tests."""
        patterns = [rows for name, rows in _TOUCHED.items() if name in self.file]
        return any(re.search(pattern, work) for pattern in patterns)


def test_files(device: torch.device) -> list[str]:
    """Those with tests for this device, in order: of a GPU, the files that say so; of a CPU, those of kernels.

    Those of serving are among them where what serving needs is installed.
    """
    said, rooms = "pytest.mark.gpu" if device.type == "cuda" else "interpret", ["ops"]
    if all(map(_is_installed, _SERVING)):
        rooms.append("serve")
    paths = [path for room in rooms for path in sorted((CHECKOUT / "tests" / room).glob("test_*.py"))]
    return [f"{path.parent.name}/{path.name}" for path in paths if said in path.read_text(encoding="utf-8")]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def run_tests(
    files: Sequence[str], device: torch.device, until: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[FileResult]:
    """What comes of each file, as it comes.

    Args:
        files: by :func:`test_files`.
        device: on a GPU its tests run, elsewhere those of Triton's interpreter.
        until: when, by ``clock``, what is still running is ended.
        clock: seconds.
    """
    if importlib.util.find_spec("pytest") is None:
        yield from (FileResult(file, "not run", failures=("pytest is not installed",)) for file in files)
        return
    waiting, running = list(files), dict[str, tuple[subprocess.Popen[str], float]]()
    while waiting or running:
        while waiting and len(running) < _AT_ONCE and clock() < until:
            file = waiting.pop(0)
            running[file] = _start(file, device), clock()
        late = clock() >= until
        if late:
            yield from (FileResult(file, "not run", failures=("no time was left",)) for file in waiting)
            waiting = []
        for file, (process, began) in list(running.items()):
            if process.poll() is None and not late:
                continue
            process.kill()
            said = process.communicate()[0]
            del running[file]
            if late and process.returncode < 0:
                yield FileResult(file, "not run", clock() - began, ("it took longer than there was time",))
            else:
                yield _tested(file, process.returncode, said, clock() - began)
        time.sleep(0.02)


def _start(file: str, device: torch.device) -> "subprocess.Popen[str]":
    marked, environment = "gpu", {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if device.type != "cuda":
        marked, environment["TRITON_INTERPRET"] = "not gpu and not slow", "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT / "src"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-m", marked, "-rfE", "--tb=line", f"tests/{file}"]
    return subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _tested(file: str, code: int, said: str, seconds: float) -> FileResult:
    if code == 0:
        return FileResult(file, "green", seconds)
    if code == 5:
        return FileResult(file, "not run", seconds, ("pytest found no test to run",))
    named = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if code < 0:
        named.append(f"its process ended by signal {-code}")
    return FileResult(file, "red", seconds, tuple(named or said.strip().splitlines()[-10:] or ["pytest said nothing"]))
