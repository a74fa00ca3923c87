"""The native bodies of the ops: compiled for this machine at first use, once per user, and called through ctypes.

Every ``.cpp`` below this folder goes into one library, by whatever C++ compiler is at hand. Without one the ops have
their PyTorch bodies, and nothing else changes.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock

from leyden.ops.native_cache import private_folder, refuse_others

DTYPES = (torch.bfloat16, torch.float32)
"""What the native bodies compute on."""

LANES = 16
"""Elements of a vector; bodies that know no rest behind the last whole one say so."""

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fPIC", f"-I{_FOLDER}")
_TIMEOUT_SECONDS = 900
"""Of a compilation, and of waiting for that of another process; fifteen seconds are usual, on two cores."""


class UnavailableError(Exception):
    """The native bodies cannot be had on this machine; the message says why."""


def library() -> ctypes.CDLL:
    """The compiled bodies.

    Raises:
        UnavailableError: no compiler, one without OpenMP, or nowhere to keep the result.
    """
    loaded = load()
    if isinstance(loaded, UnavailableError):
        raise loaded
    return loaded


Argument = torch.Tensor | torch.dtype | int | float | None


def call(function: str, *arguments: Argument) -> None:
    """Call one function of the library with the addresses of tensors, which must be contiguous.

    A dtype becomes whether it is bfloat16, None the null address; the number of threads is PyTorch's and goes last.
    """
    getattr(library(), function)(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Argument) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous(), "the native bodies know no strides"
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, torch.dtype):
        return ctypes.c_int64(value == torch.bfloat16)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


@functools.cache
def load() -> ctypes.CDLL | UnavailableError:
    """The library, from the user's cache where an earlier process left it there, or why there is none."""
    try:
        return _load()
    except UnavailableError as reason:
        return reason


def _load() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise UnavailableError("there is no C++ compiler (c++, or what CXX names)")
    sources = sorted(_FOLDER.rglob("*.cpp"))
    # What the compiler predefines tells its version and the processor it compiles for.
    key = hashlib.sha256(_run(compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull))
    for path in (*sorted(_FOLDER.rglob("*.h")), *sources):
        key.update(path.read_bytes())
    try:
        built = private_folder() / f"ops-{key.hexdigest()[:16]}.so"
        if not built.exists():
            _compile_once(compiler, sources, built)
        refuse_others(built)
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise UnavailableError(f"compiled code cannot be kept or loaded ({error})") from None


def _compile_once(compiler: str, sources: list[Path], built: Path) -> None:
    """Of processes that need ``built`` at the same time one compiles it, and the others wait for that."""
    with FileLock(built.parent / "ops.lock", timeout=_TIMEOUT_SECONDS):
        if not built.exists():
            _compile(compiler, sources, built)


def _compile(compiler: str, sources: list[Path], built: Path) -> None:
    """Compile beside ``built``, then rename, so that another process never loads half a file."""
    logging.getLogger(__name__).info("compiling the native ops for this processor (once, some seconds)")
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [f"{scratch}/{number}.o" for number in range(len(sources))]
        jobs = sorted(zip(sources, objects, strict=True), key=lambda job: -job[0].stat().st_size)  # the longest first
        list(pool.map(lambda job: _run(compiler, *_FLAGS, "-c", str(job[0]), "-o", job[1]), jobs))
        part = Path(scratch) / built.name
        _run(compiler, *_FLAGS, "-shared", *objects, "-o", str(part))
        part.chmod(0o700)  # whatever the umask allows others
        part.replace(built)


def _run(*command: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise UnavailableError(f"{command[0]} failed: {reason}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} took more than {_TIMEOUT_SECONDS} s") from None
