"""The Triton kernels compile for GPUs that are not there, and the hot ones fit their registers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("compile_kernels.py")
AMPERE, HOPPER, BLACKWELL = 80, 90, 100


def compiled(tmp_path: Path, op: str, dtype: str, width: int, *architectures: int) -> list[dict[str, Any]]:
    """In a process of its own: in this one kernels may be interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, PROGRAM, op, dtype, width, *architectures]
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lightning_attention_on_hopper(tmp_path: Path) -> None:
    found = compiled(tmp_path, "lightning_attention", "bfloat16", 128, HOPPER)
    assert {facts["kernel"] for facts in found} == {"summarise", "scan", "attend", "decode"}
    for facts in found:
        assert facts["spilled"] <= 64, facts


@pytest.mark.parametrize(
    ("op", "width", "kernels"), [("cross_entropy", 200, {"losses"}), ("paged_attention", 128, {"attend", "combine"})]
)
def test_other_ops_on_hopper(tmp_path: Path, op: str, width: int, kernels: set[str]) -> None:
    found = compiled(tmp_path, op, "bfloat16", width, HOPPER)
    assert {facts["kernel"] for facts in found} == kernels
    for facts in found:
        assert facts["spilled"] == 0, facts


@pytest.mark.parametrize(
    ("op", "width", "kernels"),
    [
        ("rms_norm", 8192, {"normalise", "differentiate"}),
        ("rotary", 128, {"turn"}),
        ("silu_split", 128, {"split", "join"}),
    ],
)
def test_ops_around_attention_on_hopper(tmp_path: Path, op: str, width: int, kernels: set[str]) -> None:
    found = compiled(tmp_path, op, "bfloat16", width, HOPPER)
    assert {facts["kernel"] for facts in found} == kernels
    for facts in found:
        assert facts["spilled"] == 0, facts


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("op", "width"), [("rms_norm", 33), ("rms_norm", 6144), ("rotary", 20), ("silu_split", 5)])
def test_ops_around_attention_everywhere(tmp_path: Path, op: str, architecture: int, dtype: str, width: int) -> None:
    assert compiled(tmp_path, op, dtype, width, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("op", "width"), [("cross_entropy", 1), ("paged_attention", 80), ("paged_attention", 256)])
def test_other_ops_everywhere(tmp_path: Path, op: str, architecture: int, dtype: str, width: int) -> None:
    assert compiled(tmp_path, op, dtype, width, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 128), ("bfloat16", 256), ("float16", 64), ("float32", 32)])
def test_lightning_attention_everywhere(tmp_path: Path, architecture: int, dtype: str, width: int) -> None:
    assert compiled(tmp_path, "lightning_attention", dtype, width, architecture)
