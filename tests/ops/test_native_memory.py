"""Where a native call gets no memory, in whichever of its threads, it raises MemoryError and the process goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leyden.ops import native

pytestmark = [
    pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here"),
    pytest.mark.skipif(sys.platform != "linux", reason="allocators are replaced, and addresses limited, as on Linux"),
]


def scarce(*arguments: str, **environment: str) -> dict[str, Any]:
    """What ``scarce.py`` prints. A team whose threads wait for each other for ever ends at the time limit."""
    pytest.importorskip("pydantic")
    given = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).with_name("scarce.py")), *arguments]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("work", ["step", pytest.param("ops", marks=pytest.mark.slow)])
def test_every_allocation_may_fail(tmp_path: Path, work: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not here")
    source, preloaded = Path(__file__).with_name("scarce.cpp"), tmp_path / "scarce.so"
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", preloaded, "-ldl"]
    subprocess.run(command, check=True)
    failed = scarce(work, LD_PRELOAD=str(preloaded))
    least = {"step": 40} if work == "step" else {"norms": 1, "swiglu_experts": 1, "lightning_attention": 1}
    assert all(failed[op] >= count for op, count in least.items()), failed


def test_a_process_without_addresses_goes_on() -> None:
    said = scarce("limit")
    assert said.keys() == {"step", "op"}
    assert "there is not enough memory" in said["step"] and "there is not enough memory" in said["op"]
