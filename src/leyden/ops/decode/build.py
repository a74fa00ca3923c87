"""Compiling the native step for this machine, once per user, with whatever C++ compiler is at hand."""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("decode.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC")
_TIMEOUT_SECONDS = 120


class UnavailableError(Exception):
    """The native step cannot be had on this machine; the message says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled step, from the user's cache where an earlier process left it there.

    Raises:
        UnavailableError: no compiler, one without OpenMP, or nowhere to keep the result.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise UnavailableError("there is no C++ compiler (c++, or what CXX names)")
    # What the compiler predefines tells its version and the processor it compiles for.
    target = _run(compiler, *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    key = hashlib.sha256(target + _SOURCE.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leyden"
    built = cache / f"decode-{key}.so"
    try:
        if not built.exists():
            _compile(compiler, built)
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise UnavailableError(f"{built} cannot be written or loaded ({error})") from None


def _compile(compiler: str, built: Path) -> None:
    """Compile beside ``built``, then rename, so that another process never loads half a file."""
    logging.getLogger(__name__).info("compiling the decoding step for this processor (once, some seconds)")
    built.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        part = Path(scratch) / built.name
        _run(compiler, *_FLAGS, str(_SOURCE), "-o", str(part))
        part.replace(built)


def _run(*command: str) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS).stdout
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()
        raise UnavailableError(f"{command[0]} failed: {reason[0] if reason else error.returncode}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} took more than {_TIMEOUT_SECONDS} s") from None
