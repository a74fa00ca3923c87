"""The native bodies of the ops: a library in C++, ready in a wheel or compiled at first use, called through ctypes.

Every ``.cpp`` below ``leyden/ops`` goes into one library. A wheel has one for each level of processors (``build.py``),
of which the best that the processor has is loaded. Elsewhere it is compiled for this machine by whatever C++ compiler
is at hand, once per user (``cache.py``). Without either the ops have their PyTorch bodies, and nothing else changes.
What is handed to a function is checked against its declaration first (``functions.py``).
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from leyden.ops.native import build, cache, processor
from leyden.ops.native.functions import DTYPES, FUNCTIONS, Argument, is_plain

__all__ = ["DTYPES", "LANES", "Library", "UnavailableError", "call", "in_reach", "library", "load", "raise_fault"]

LANES = 16
"""Elements of a vector; bodies that know no rest behind the last whole one say so."""

_NO_MEMORY = b"there is not enough memory"
"""The fault by which the native functions say so; ``native.h`` has the same words."""

_PREBUILT = build.SOURCES / "prebuilt"
"""Where a wheel has its libraries."""


class UnavailableError(Exception):
    """The native bodies cannot be had on this machine; the message says why."""


class Library:
    """The compiled bodies.

    Attributes:
        path: of the file.
        origin: where it is from, in words.
        functions: those that :func:`call` calls, by name.
        leyden_decode, leyden_experts_forward_pays, leyden_matmul_pays, leyden_attention_pays: the others.
    """

    def __init__(self, path: Path, origin: str) -> None:
        """Load a file.

        Raises:
            OSError: it cannot be loaded, or is no such library.
        """
        self.path, self.origin = path, origin
        loaded = ctypes.CDLL(str(path))
        try:
            self.functions: dict[str, Callable[..., bytes | None]] = {}
            for name, function in FUNCTIONS.items():
                found = getattr(loaded, name)
                found.argtypes, found.restype = function.ctypes(), ctypes.c_char_p
                self.functions[name] = found
            self.leyden_decode = loaded.leyden_decode
            self.leyden_decode.restype = ctypes.c_char_p
            self.leyden_experts_forward_pays = loaded.leyden_experts_forward_pays
            self.leyden_matmul_pays = loaded.leyden_matmul_pays
            self.leyden_attention_pays = loaded.leyden_attention_pays
        except AttributeError as error:
            raise OSError(f"{path}: {error}") from None


def library() -> Library:
    """The compiled bodies.

    Raises:
        UnavailableError: no compiler, one without OpenMP, or nowhere to keep the result.
    """
    loaded = load()
    if isinstance(loaded, UnavailableError):
        raise loaded
    return loaded


def call(function: str, *arguments: Argument) -> None:
    """Call one function of the library, after its arguments were checked against its declaration.

    Tensors must be plain ones on the CPU; None is the null address, and the number of threads is PyTorch's.

    Raises:
        ValueError: there is no such function, it does not take these arguments, or a number in one of the tensors
            points outside of another; nothing was written.
        MemoryError: one of the function's threads got no memory to work in; what the function writes is undefined.
        UnavailableError: there is no library here.
    """
    prepare(function, *arguments)()


def prepare(function: str, *arguments: Argument) -> Callable[[], None]:
    """What makes the same call each time it is called: arguments are checked once, and kept as long as it is.

    Raises:
        ValueError, UnavailableError: as :func:`call` does before it calls; the rest is for the calls to raise.
    """
    declared = FUNCTIONS.get(function)
    if declared is None:
        raise ValueError(f"{function} is none of the native functions: {', '.join(FUNCTIONS)}.")
    body, given = library().functions[function], declared.given(arguments)

    def run(kept: tuple[Argument, ...] = arguments) -> None:
        raise_fault(function, body(*given, torch.get_num_threads()))

    return run


def raise_fault(function: str, fault: bytes | None) -> None:
    """Raise what a native function returned, if it is a reason why the function did not do its work.

    Raises:
        MemoryError: there was not enough memory for the work.
        ValueError: any other reason, which the message gives.
    """
    if fault is not None:
        raise (MemoryError if fault == _NO_MEMORY else ValueError)(f"{function}: {fault.decode()}.")


def in_reach(*tensors: torch.Tensor | None) -> bool:
    """Whether C++ can read what the tensors hold, and nobody is only tracing what is done with them."""
    for tensor in tensors:
        if tensor is not None and not is_plain(tensor):
            return False
    return not _is_traced()


def _is_traced() -> bool:
    modes = torch._C._TorchDispatchModeKey  # those of fake tensors, of make_fx, and of functionalization
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY, modes.FUNCTIONAL)
    )


@functools.cache
def load() -> Library | UnavailableError:
    """The library, or why there is none."""
    if sys.platform == "win32":
        return UnavailableError("there are no native bodies for Windows")
    try:
        return _prebuilt() or _compiled()
    except build.BuildError as reason:
        return UnavailableError(str(reason))
    except OSError as error:
        return UnavailableError(f"compiled code cannot be kept or loaded ({error})".replace("\n", " "))


def _prebuilt() -> Library | None:
    """The best that this wheel has for this processor."""
    for level, needs in reversed(build.LEVELS.get(platform.machine(), {}).items()):
        if needs.needs <= processor.features():
            for path in _PREBUILT.glob(f"{level}-{build.sources_hash()}.so"):
                try:
                    return Library(path, f"of this wheel, for {level}")
                except OSError as error:  # a C library that is too old, say
                    logging.getLogger(__name__).info("the native ops of this wheel cannot be loaded: %s", error)
    return None


def _compiled() -> Library:
    """From the cache, or made now. Without a compiler, one that any other has left in the cache for this processor."""
    machine = hashlib.sha256(f"{build.sources_hash()} {processor.identity()} {_c_library()}".encode())
    stem = f"ops-{machine.hexdigest()[:16]}"
    try:
        compiler = build.Compiler.find()
    except build.BuildError:
        found = cache.find(stem, lambda path: Library(path, "compiled for this processor before"))
        if found is None:
            raise
        return found
    stem += f"-{hashlib.sha256(compiler.identity().encode()).hexdigest()[:8]}"

    def use(path: Path) -> Library:
        return Library(path, f"compiled for this processor by {compiler}")

    def make(path: Path) -> None:
        logging.getLogger(__name__).info("compiling the native ops for this processor (once, some seconds)")
        build.compile_library(compiler, build.for_this_processor(), path, build.SOURCES)

    return cache.find(stem, use) or cache.make(stem, make, use)


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError):
        return ""
