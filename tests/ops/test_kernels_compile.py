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
SPILLED = {"ranged_attention_hot.differentiate_keys": 16, "rms_norm.differentiate": 32}
"""Bytes of a thread, where it is not none: four registers of 255, and eight of 128 in rows of 8,192."""
RESIDENT = {
    "rms_norm.differentiate": 2,
    "paged_attention.attend": 3,
    "int8_linear.multiply": 2,
    "experts_int8.project_int8": 2,
    "experts_int8.collect_int8": 3,
}
"""Programs on a multiprocessor, where more than one are counted on."""
AHEAD = {
    **{f"ranged_attention_hot.{name}": 1 for name in ("attend", "differentiate_queries", "differentiate_keys")},
    "paged_attention.attend": 1,
    **dict.fromkeys(("int8_linear.multiply", "experts_int8.project_int8", "experts_int8.collect_int8"), 1),
}
"""Blocks whose loads are under way while a block's products run."""
OTHERS = [("float16", 64), ("float32", 64)]
RESIDENT_LIGHTNING = {"attend": 1, "summarise": 2, "scan": 16, "decode": 8}
"""Programs that a multiprocessor of Hopper holds at least, heads of 128; those of attend have 8 warps."""


RESIDENT_GATED = {"weigh": 2, "attend": 1, "summarise": 2, "scan": 12, "differentiate": 2, "decode": 6}


def compiled(tmp_path: Path, ops: str, dtype: str, *architectures: int) -> list[dict[str, Any]]:
    """In a process of its own: in this one kernels may be interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, PROGRAM, ops, dtype, *architectures]
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("work", ["forward", pytest.param("hot", marks=pytest.mark.slow)])
def test_lightning_attention_on_hopper(tmp_path: Path, work: str) -> None:
    """In every loop of products the next chunk is on its way, and nothing but a register or two is spilled."""
    found = compiled(tmp_path, f"lightning_attention_{work}:128", "bfloat16", HOPPER)
    assert {facts["kernel"].partition(".")[2] for facts in found} == {"summarise", "scan", "attend", "decode"}
    for facts in found:
        assert facts["spilled"] <= 8, facts
        assert facts["ahead"] in (None, 1.0), facts
        assert facts["exposed"] == 0, facts
        assert facts["resident"] >= RESIDENT_LIGHTNING[facts["kernel"].partition(".")[2]], facts


@pytest.mark.slow
def test_gated_linear_attention_on_hopper(tmp_path: Path) -> None:
    """The walk as of lightning attention; what is done within chunks is not pipelined, but two programs share a
    multiprocessor. Of the loads that are waited for, all are of one number a dim, but the states that meet."""
    found = compiled(tmp_path, "gated_linear_attention_hot:128", "bfloat16", HOPPER)
    names = {facts["kernel"].partition(".")[2] for facts in found}
    assert names == {"weigh", "summarise", "scan", "attend", "differentiate", "decode"}
    for facts in found:
        name = facts["kernel"].partition(".")[2]
        assert facts["spilled"] <= (80 if name == "differentiate" else 0), facts
        assert facts["resident"] >= RESIDENT_GATED[name], facts
        if name in ("summarise", "attend"):
            assert facts["ahead"] == 1.0, facts
            assert facts["exposed"] <= 3, facts


def test_another_batch_compiles_nothing_new() -> None:
    """Lengths and counts of documents are no compile-time constants of lightning attention: all launch one kernel."""
    program = """
import torch
from compile_kernels import _LIGHTNING, _WALK, record
def call(module):
    for tokens, documents in ((640, 1), (641, 1), (700, 16), (1600, 17)):
        x, slopes = torch.zeros(tokens, 200, 64, dtype=torch.bfloat16, device="meta"), torch.zeros(200, device="meta")
        bounds = torch.zeros(documents + 1, dtype=torch.int32, device="meta")
        states = torch.zeros(20, 200, 64, 64, device="meta")
        slots = torch.zeros(documents, dtype=torch.int64, device="meta")
        module.prefill._init_fn(x, x, x, slopes, states, slots, bounds)
print(len({launch.key() for launch in record(_LIGHTNING, call, _WALK) if launch.form["C"] == 64}))
"""
    assert printed(program) == ["1"]


@pytest.mark.slow
def test_other_counts_compile_nothing_new_around_it() -> None:
    program = """
import torch
from compile_kernels import record
def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")
def integers(*shape):
    return empty(*shape, dtype=torch.int32)
def ranged(module, n):
    q, k = empty(n, 4, 64), empty(n + 1, 2, 64)
    out, lse = module._forward._init_fn(q, k, k, integers(n), integers(n))
    module._backward._init_fn(q, q, k, k, lse, lse, integers(n), integers(n))
def paged(module, n):
    pages = empty(9, 64, 2, 64)
    module._paged_attention._init_fn(empty(n, 4, 64), pages, pages, integers(n, n), integers(n))
def norm(module, n):
    _, rstd = module._forward._init_fn(empty(n, 64), None, None, empty(64, dtype=torch.float32), 1e-5, 1.0, 1.0)
    module._backward._init_fn(empty(n, 64), empty(n, 64), None, None, empty(64, dtype=torch.float32), rstd, 1.0, 1.0)
def turn(module, n):
    angles = empty(n, 8, dtype=torch.float32)
    module._turn._init_fn(empty(2, n, 4, 64), angles, angles, 1.0, False)
def split(module, n):
    module._backward._init_fn(*module._forward._init_fn(empty(n, 192)), empty(n, 192))
def route(module, n):
    experts, weights, probabilities = module._forward._init_fn(empty(n, 8, dtype=torch.float32), 2)
    module._backward._init_fn(experts, weights, probabilities, weights, None)
def linear(module, n):
    module._int8_linear._init_fn(empty(n, 64), empty(32, 64, dtype=torch.int8), empty(32, dtype=torch.float32))
ops = {"ranged_attention": ranged, "paged_attention": paged, "rms_norm": norm, "rotary": turn, "silu_split": split}
for name, op in (ops | {"routing": route, "int8_linear": linear}).items():
    counts = (1, 2, 15, 16) if name == "int8_linear" else (17, 31, 32, 300)
    found = record(f"leyden.ops.{name}.launch", lambda module: [op(module, n) for n in counts])
    kernels = {(launch.name, launch.form.get("CAREFUL")) for launch in found}
    print(name, len({launch.key() for launch in found}) - len(kernels))
"""
    assert [line.split()[1] for line in printed(program)] == ["0"] * 7


def printed(program: str) -> list[str]:
    """The lines that a program prints in which kernels are not interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROGRAM.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_other_ops_on_hopper(tmp_path: Path) -> None:
    around = "rms_norm:8192,rotary:128,silu_split:128,routing:32,experts:2048,cross_entropy:200,paged_attention:128"
    others = "ranged_attention_hot:128,int8_linear:6144,experts_int8:2048,paged_latent_attention:512"
    found = compiled(tmp_path, f"{around},{others}", "bfloat16", HOPPER)
    assert {facts["kernel"] for facts in found} == {
        *("rms_norm.normalise", "rms_norm.differentiate", "rotary.turn", "silu_split.split", "silu_split.join"),
        *("routing.route", "routing.route_backward", "cross_entropy.losses", "int8_linear.multiply"),
        *(f"experts.{name}" for name in ("permute", "unpermute", "activate", "activate_backward", "clear_idle")),
        *("experts_int8.project_int8", "experts_int8.collect_int8"),
        *(f"paged{name}attention.{kernel}" for name in ("_", "_latent_") for kernel in ("attend", "combine")),
        *(f"ranged_attention_hot.{name}" for name in ("attend", "differentiate_queries", "find", "differentiate_keys")),
    }
    for facts in found:
        assert facts["spilled"] <= SPILLED.get(facts["kernel"], 0), facts
        assert facts["resident"] >= RESIDENT.get(facts["kernel"], 1), facts
        assert facts["kernel"] not in AHEAD or facts["ahead"] >= AHEAD[facts["kernel"]], facts


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_other_ops_everywhere(tmp_path: Path, architecture: int, dtype: str) -> None:
    around = "rms_norm:33,rms_norm:6144,rotary:20,silu_split:5,routing:5,experts:48,experts_int8:33,int8_linear:33"
    attention = "paged_attention:80,paged_attention:256,paged_latent_attention:512,ranged_attention:80"
    assert compiled(tmp_path, f"{around},cross_entropy:1,{attention}", dtype, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize(("dtype", "width"), [*(("bfloat16", width) for width in (64, 128, 256)), *OTHERS])
def test_lightning_attention_everywhere(tmp_path: Path, architecture: int, dtype: str, width: int) -> None:
    for facts in compiled(tmp_path, f"lightning_attention:{width}", dtype, architecture):
        assert facts["spilled"] <= 512, facts
        assert facts["resident"] >= 1, facts
        if architecture != AMPERE and dtype == "bfloat16" and width <= 128:
            assert facts["ahead"] in (None, 1.0), facts
            assert facts["spilled"] <= 32, facts


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [AMPERE, HOPPER, BLACKWELL])
@pytest.mark.parametrize(("dtype", "width"), [*(("bfloat16", width) for width in (16, 64, 128)), *OTHERS])
def test_gated_linear_attention_everywhere(tmp_path: Path, architecture: int, dtype: str, width: int) -> None:
    for facts in compiled(tmp_path, f"gated_linear_attention:{width}", dtype, architecture):
        assert facts["spilled"] <= 512, facts
        assert facts["resident"] >= 1, facts
