"""Which body of an op runs: the float64-capable reference, plain PyTorch, native C++, or Triton.

The choice is made once per op, device and dtype, and logged; an explicit backend never falls back to another.
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from leyden.ops import native as native_ops

_Function = TypeVar("_Function", bound=Callable[..., object])

_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_CPU = torch.device("cpu")

Backend = Literal["auto", "reference", "torch", "native", "triton"]


def choose(
    op: str,
    backend: str,
    *tensors: torch.Tensor | None,
    triton: torch.dtype | None = None,
    native: torch.dtype | None = None,
) -> str:
    """The body to run: ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.

    Args:
        op: the name of the op, for messages.
        backend: what the caller asked for.
        tensors: what the body would compute on, the first not None.
        triton: the dtype of the tensors where this op has a Triton body.
        native: the dtype of the tensors where this op has a native body.

    Raises:
        ValueError: tensors on several devices, an unknown backend, or one that cannot run this op on this device in
            this dtype.
    """
    # A graph of the compiler cannot call C++, and what it fuses of PyTorch's body needs none.
    in_reach = not torch.compiler.is_compiling() and native_ops.in_reach(*tensors)
    if in_reach:
        device = _CPU
    else:
        device = _device(op, tensors)
    if backend == "auto":
        return _automatic(op, device.type, triton, native if in_reach else None)
    if backend == "native":
        _check_native(op, device, native)
        if not in_reach:
            raise ValueError(
                f"{op}: backend='native' reads and writes the memory of plain tensors, and these are fake, traced, or "
                "of a class of their own; use backend='auto' or 'torch'."
            )
    elif backend == "triton":
        _check_triton(op, device, triton)
    elif backend not in ("reference", "torch"):
        allowed = "'auto', 'reference', 'torch', 'native', 'triton'"
        raise ValueError(f"{op}: backend {backend!r} is unknown; allowed: {allowed}.")
    return backend


def choose_capping(
    op: str,
    backend: str,
    softcap: float | None,
    *tensors: torch.Tensor | None,
    triton: torch.dtype | None = None,
    native: torch.dtype | None = None,
) -> str:
    """:func:`choose`; with a ``softcap``, which neither C++ nor Triton computes, ``"auto"`` is PyTorch's body.

    A cap c takes a number x to ``c tanh(x / c)`` (Gemma 2, arXiv 2408.00118, section 2).

    Raises:
        ValueError: as :func:`choose`, a cap that is not above 0, or one for a body that computes none.
    """
    if softcap is None:
        return choose(op, backend, *tensors, triton=triton, native=native)
    if not 0 < softcap < float("inf"):
        raise ValueError(f"{op}: a softcap above 0 expected, or None for none; given {softcap}.")
    if backend in ("native", "triton"):
        raise ValueError(
            f"{op}: backend={backend!r} does not compute with a softcap ({softcap:g}); use backend='auto', 'torch' or "
            "'reference'."
        )
    if backend == "auto":
        _say_capping(op)
    return choose(op, backend, *tensors)


def _device(op: str, tensors: tuple[torch.Tensor | None, ...]) -> torch.device:
    """Where all of them are; a graph of the compiler, which cannot hold names of devices, checks that by itself."""
    if torch.compiler.is_compiling():
        return next(tensor.device for tensor in tensors if tensor is not None)
    places = {str(tensor.device).removesuffix(":0"): tensor.device for tensor in tensors if tensor is not None}
    if len(places) > 1:
        raise ValueError(f"{op}: tensors on one device expected; given {', '.join(sorted(places))}.")
    return next(iter(places.values()))


def _check_native(op: str, device: torch.device, dtype: torch.dtype | None) -> None:
    if dtype is None:
        raise ValueError(f"{op} has no native body; use backend='auto', 'torch' or 'reference'.")
    if device.type != "cpu" or dtype not in native_ops.DTYPES:
        raise ValueError(
            f"{op}: backend='native' needs CPU tensors in bfloat16 or float32; given {dtype} on {device.type}."
        )
    reason = native_ops.load()
    if isinstance(reason, native_ops.UnavailableError):
        raise ValueError(f"{op}: backend='native' cannot run: {reason}; use 'auto' or 'torch'.")


def _check_triton(op: str, device: torch.device, dtype: torch.dtype | None) -> None:
    if dtype is None:
        raise ValueError(f"{op} has no Triton body; use backend='auto', 'torch' or 'reference'.")
    if dtype not in _TRITON_DTYPES:
        raise ValueError(f"{op}: backend='triton' needs bfloat16, float16 or float32; given {dtype}.")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{op}: backend='triton' needs CUDA tensors (given: {device.type}); "
            "set TRITON_INTERPRET=1 to run it on the CPU in Triton's interpreter."
        )


def constant_when_compiled(function: _Function) -> _Function:
    """What ``torch.compiler.assume_constant_result`` does, which would import the compiler along with every op.

    torch.compile then calls ``function`` once, as Python, where tracing it would break the graph.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@constant_when_compiled  # it looks for triton, and logs
def _automatic(op: str, device_type: str, triton: torch.dtype | None, native: torch.dtype | None) -> str:
    chosen = "torch"
    if device_type == "cuda" and triton in _TRITON_DTYPES and importlib.util.find_spec("triton"):
        chosen = "triton"
    elif device_type == "cpu" and native in native_ops.DTYPES:
        loaded = native_ops.load()
        if isinstance(loaded, native_ops.UnavailableError):
            _log_once(logging.INFO, f"ops on the CPU run in PyTorch, not natively, which is slower: {loaded}")
        else:
            chosen = "native"
    _log_once(logging.DEBUG, f"{op} on {device_type} in {triton or native or 'any dtype'}: backend {chosen}")
    return chosen


@constant_when_compiled  # it logs
def _say_capping(op: str) -> None:
    _log_once(logging.INFO, f"{op} with a softcap runs in PyTorch, since its faster bodies do not compute one")


@functools.cache
def _log_once(level: int, message: str) -> None:
    logging.getLogger(__name__).log(level, message)
