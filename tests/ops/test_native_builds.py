"""The native bodies as other compilers, standards and processors have them, under sanitizers, and out of a wheel."""

import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz
import native_replay
import pytest
import torch

from leyden.ops import native, sampling
from leyden.ops.native import build, processor
from leyden.ops.native.functions import FUNCTIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="of x86-64 and Linux"),
]

_ROOT = Path(__file__).parents[2]
_LEVELS = build.LEVELS["x86_64"]
_WARNINGS = ("-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unused-command-line-argument")
_DECODER = "../serve/test_native_decoder.py"
_TESTS = ("test_native_inference.py", "test_native_bodies.py", "test_native_calls.py", "test_fuzz.py", _DECODER)


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A folder for what a test compiles, which is large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def run_tests(cache: Path, compiler: str, *tests: str, **environment: str) -> str:
    """The tests in a process of their own, whose library is by this compiler with these options."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow"]
    given = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(cache), **environment}
    given["PYTHONPATH"] = str(_ROOT / "src")
    paths = [str(_ROOT / "tests" / "ops" / test) for test in tests]
    done = subprocess.run([*command, *paths], env=given, cwd=_ROOT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert " passed" in said or "100%" in said, said[-2000:]
    assert list(cache.glob("leyden/ops-*.so")), "the library was compiled"
    return said


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("level", _LEVELS)
def test_every_level_compiles_without_a_warning(cache: Path, compiler: str, standard: str, level: str) -> None:
    needs(compiler)
    flags = (*_LEVELS[level].flags, *_WARNINGS, f"-std={standard}")
    build.compile_library(build.Compiler((compiler,)), flags, cache / "ops.so")


@pytest.mark.parametrize(("compiler", "level"), [("g++ -std=c++20", "x86-64-v2"), ("clang++ -O2", "x86-64-v3"),
                                                 ("g++ -O2", "x86-64-v3"), ("clang++ -O2", "x86-64-v4"),
                                                 ("g++ -O2", "x86-64-v4-bf16")])  # fmt: skip
def test_levels_that_the_processor_has(cache: Path, compiler: str, level: str) -> None:
    needs(compiler.split()[0])
    if not _LEVELS[level].needs <= processor.features():
        pytest.skip(f"this processor is none of {level}")
    run_tests(cache, f"{compiler} {' '.join(_LEVELS[level].flags)}", *_TESTS)


def _runtime(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"lib{name} is not here")
    return found


def test_addresses_and_undefined_behaviour(cache: Path) -> None:
    needs("g++")
    run_tests(
        cache,
        "g++ -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "test_native_calls.py",
        "test_fuzz.py",
        _DECODER,
        LD_PRELOAD=f"{_runtime('asan')} {_runtime('ubsan')}",
        ASAN_OPTIONS="detect_leaks=0",  # Python's own are many
    )


def test_threads(cache: Path) -> None:
    """libgomp is not instrumented, so that the sanitizer does not see its barriers: ``team.cpp`` stands in for it."""
    needs("g++")
    team = cache / "team.o"
    source = Path(__file__).with_name("team.cpp")
    subprocess.run(["g++", "-O1", "-g", "-fPIC", "-fsanitize=thread", "-c", source, "-o", team], check=True)
    run_tests(
        cache,
        f"g++ -O1 -g -fsanitize=thread -Wl,-Bsymbolic {team}",
        "test_native_inference.py",
        "test_native_calls.py",
        _DECODER,
        LD_PRELOAD=_runtime("tsan"),
        TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66 halt_on_error=1",
    )


def _every_function() -> None:
    """With the functions that auto takes on some processors alone, in the dtype in which all have them."""
    library = native.library()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("leyden_experts_forward_pays", "leyden_attention_pays"):
            patch.setattr(library, name, lambda bfloat16: not bfloat16.value)
        patch.setattr(library, "leyden_matmul_pays", lambda bfloat16: False)
        for op, (_, backend) in fuzz.OPS.items():
            if backend != "torch":
                for seed in range(12):
                    fuzz.check(op, seed)
    for seed in range(4):  # experts as training has them
        fuzz.check("swiglu_experts", seed)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    some = (sampling.Filters(0.7, 9, 0.9, 0.01, math.inf, 0.3), sampling.Filters(1.3, math.inf, 0.8, 0, 2, 0.8))
    greedy = sampling.Filters(0, math.inf, 1, 0, math.inf, 0)
    sampling.sample(logits, sampling.filter_table([greedy, *some, some[0]]))


def _steps() -> list[native_replay.Call]:
    """Decoding steps of several tokens and sequences, with every kind of weights."""
    import scarce  # it needs pydantic

    calls = []
    for kind in ("float32", "bfloat16", "int8"):
        decoder = scarce.decoder(5, 3, kind, scarce.EVERY_BODY)
        readings = [scarce.Reading([1, 2], 0, [0], [0, 1, 2], 2), scarce.Reading([4], 0, [1], [3, 3], 1)]
        later = [scarce.Reading([7], 2, [0], [2, 2], 1), scarce.Reading([9, 3, 8], 1, [1], [3, 3, 4, 3], 3)]
        calls += native_replay.record_steps(decoder._kept, lambda d=decoder, r=(readings, later): [*map(d.run, r)])
    assert len(calls) == 6
    return calls


# Clang has as a rule no OpenMP library for another processor. What it compiles with OpenMP is not linked to one;
# what is run has teams of one thread.
@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-g++", "clang++ --target=aarch64-linux-gnu -nodefaultlibs"])
def test_aarch64_compiles_without_a_warning(cache: Path, compiler: str, standard: str) -> None:
    program, *options = compiler.split()
    needs(program, "aarch64-linux-gnu-g++")
    flags = (*build.LEVELS["aarch64"]["armv8-a"].flags, *_WARNINGS, f"-std={standard}", *options)
    build.compile_library(build.Compiler((program,)), flags, cache / "ops.so")


@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-g++", "clang++ --target=aarch64-linux-gnu -fopenmp=libgomp"])
def test_aarch64_says_the_same(cache: Path, compiler: str) -> None:
    """Cross-compiled, and run by an emulator: the calls that the ops and the engine make here, once more there.

    Products of large matrices are for processors that multiply pairs of bfloat16, and refuse their work on any other.
    """
    pytest.importorskip("pydantic")
    program, *options = compiler.split()
    needs(program, "aarch64-linux-gnu-g++", "qemu-aarch64")
    build.compile_library(build.Compiler((program,), ("-O2", *options)), (), cache / "ops.so")
    source = Path(__file__).with_name("replay.cpp")
    subprocess.run(["aarch64-linux-gnu-g++", "-O1", source, "-o", cache / "replay", "-ldl"], check=True)
    calls = [*native_replay.record(_every_function), *_steps()]
    elsewhere = {"leyden_experts_backward", "leyden_add_product"}
    assert {call.name for call in calls} == {*FUNCTIONS, "leyden_decode"} - elsewhere
    native_replay.write(calls, cache / "calls")
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "./replay", "./ops.so", "calls", "results"]
    done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for call, (said, tensors) in zip(calls, native_replay.read(calls, cache / "results"), strict=True):
        assert said == "", call.name
        for here, there in zip(call.results, tensors, strict=True):
            if not here.is_floating_point():
                assert torch.equal(here, there), call.name
                continue
            unit = torch.finfo(call.precision).eps
            size = here.nan_to_num(0, 0, 0).abs().amax().item() if here.numel() else 0
            limits = {"rtol": 32 * unit, "atol": 32 * unit * size, "equal_nan": True}
            torch.testing.assert_close(there, here, **limits, msg=lambda said, call=call: f"{call.name}: {said}")


def test_a_wheel_runs_without_a_compiler(cache: Path) -> None:
    pytest.importorskip("hatchling")
    needs("g++")
    wheel, place = cache / "wheel", cache / "place"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    environment = {**os.environ, "CXX": "g++ -O1"}
    command = [*pip, "wheel", str(_ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheel)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (built,) = wheel.glob("leyden-*-py3-none-linux_x86_64.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(place), str(built)]
    subprocess.run(install, check=True, capture_output=True)
    assert {path.name.rpartition("-")[0] for path in place.glob("leyden/ops/prebuilt/*.so")} == set(_LEVELS)
    program = (
        "import torch, leyden; from leyden.ops import native, rms_norm\n"
        "x = torch.randn(3, 16)\n"
        "native_y, y = (rms_norm(x, torch.ones(16), 1e-5, backend) for backend in ('native', 'torch'))\n"
        "assert torch.allclose(native_y, y)\n"
        "print(leyden.__file__, native.library().origin)"
    )
    nothing = {"PATH": str(cache), "PYTHONPATH": str(place), "XDG_CACHE_HOME": str(cache / "cache"), "HOME": str(cache)}
    said = subprocess.run([sys.executable, "-P", "-c", program], env=nothing, capture_output=True, text=True, cwd=cache)
    assert said.returncode == 0, said.stderr
    best = [name for name, level in _LEVELS.items() if level.needs <= processor.features()][-1]
    assert said.stdout.strip() == f"{place}/leyden/__init__.py of this wheel, for {best}"
    assert not (cache / "cache").exists()
