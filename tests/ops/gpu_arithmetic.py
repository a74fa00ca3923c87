"""Triton's interpreter with the arithmetic of a GPU: what the kernels' tests on a CPU run under.

By itself the interpreter multiplies matrices in float32 whatever precision is asked for, reads bfloat16 operands as
integers, cuts float32 to bfloat16 instead of rounding, and takes exponentials from numpy. Here they do what compiled
kernels do, so that a test that passes on a CPU says something about a GPU:

    tl.dot                  tf32 drops 13 bits of each operand, tf32x3 adds the products of what was dropped, bfloat16
                            is multiplied exactly; sums are float32
    casts                   float32 to bfloat16 to nearest, ties to even; integers to bfloat16
    exp, exp2, rsqrt, sqrt, off by a hash of the argument, as far as the manual of PTX allows the instructions that the
    division, log, log2     compiler takes (``ex2.approx``, ``rsqrt.approx``, ``sqrt.approx``, ``div.full``), or that of
                            CUDA its logarithms; the same argument always has the same error

What differs still: a compiled kernel fuses multiplications with additions, and sums in another order.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from leyden.ops import launching

Array = np.ndarray[Any, Any]

_TF32 = np.uint32(0xFFFFE000)  # the bits of a float32 that tensor cores read as tf32
_LOG2_E = np.float32(1.4426950408889634)


def _bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.uint32)


def to_bfloat16(x: Array) -> Array:
    """float32 to the bits of bfloat16, to nearest, ties to even."""
    bits = _bits(x)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16).reshape(x.shape)


def from_bfloat16(bits: Array) -> Array:
    """The bits of bfloat16 to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(x: Array) -> Array:
    """float32 as a tensor core reads it in tf32: 10 bits of mantissa, the others dropped."""
    return (_bits(x) & _TF32).view(np.float32).reshape(x.shape)


def off(x: Array, y: Array, relative: float) -> Array:
    """y off by at most ``relative``, by how much is a hash of x; zeros, ones, infinities and NaN stay.

    What a GPU makes of a decay over no distance is 1.
    """
    bits = _bits(np.asarray(x, np.float32))
    mixed = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    share = (mixed ^ (mixed >> np.uint32(16))).astype(np.float64).reshape(y.shape) / 2.0**31 - 1
    exact = (y == 0) | (y == 1) | ~np.isfinite(y)
    return np.where(exact, y, y * (1 + relative * share)).astype(np.float32)


def _exp2(x: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return off(x, np.exp2(x.astype(np.float64)), 2.0**-22)


def _exp(x: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return _exp2(x * _LOG2_E)


def _logarithm(exact: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def log(x: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return off(x, exact(x.astype(np.float64)), 2.0**-24)

    return log


def _rsqrt(x: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return off(x, 1 / np.sqrt(x.astype(np.float64)), 2.0**-22.9)


def _sqrt(x: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return off(x, np.sqrt(x.astype(np.float64)), 2.0**-23)


def _divide(x: Array, y: Array) -> Array:
    """Two units in the last place at most, of which rounding is a half."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        return off(x * y, x.astype(np.float64) / y, 1.5 * 2.0**-24)


def product(a: Array, b: Array, precision: str) -> Array:
    """What tensor cores make of float32 operands in ``precision``."""
    if precision == "tf32":
        return to_tf32(a) @ to_tf32(b)
    if precision == "tf32x3":
        high_a, high_b = to_tf32(a), to_tf32(b)
        low_a, low_b = to_tf32(a - high_a), to_tf32(b - high_b)
        return low_a @ high_b + high_a @ low_b + high_a @ high_b
    return a @ b


_PRECISIONS = {getattr(interpreter._ir.INPUT_PRECISION, name): name.lower() for name in ("IEEE", "TF32", "TF32x3")}


class _Arithmetic:
    """The methods that replace those of the interpreter's builder."""

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: int) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            total = from_bfloat16(a.data) @ from_bfloat16(b.data)
        elif a.dtype.scalar == tl.float32:
            total = product(a.data, b.data, _PRECISIONS[input_precision])
        else:
            total = np.matmul(a.data, b.data, dtype=d.data.dtype)
        return interpreter.TensorHandle(total + d.data, d.dtype.scalar)

    def cast_impl(self, source: Any, to: Any) -> Any:
        before, after = source.dtype.scalar, to.scalar
        data = from_bfloat16(source.data) if before == tl.bfloat16 else source.data
        with np.errstate(over="ignore", invalid="ignore"):
            if after == tl.bfloat16:
                data = source.data if before == tl.bfloat16 else to_bfloat16(data.astype(np.float32))
            else:
                data = data.astype(interpreter._get_np_dtype(after))
        return interpreter.TensorHandle(data, after)

    def create_fdiv(self, a: Any, b: Any) -> Any:
        data = _divide(a.data, b.data) if a.dtype.scalar == tl.float32 else np.divide(a.data, b.data)
        return interpreter.TensorHandle(data, a.dtype.scalar)


def _elementwise(approximate: Callable[[Array], Array], exact: Callable[[Array], Array]) -> Callable[..., Any]:
    def method(self: Any, x: Any) -> Any:
        function = approximate if x.dtype.scalar == tl.float32 else exact
        return interpreter.TensorHandle(function(x.data), x.dtype.scalar)

    return method


_REPLACED: dict[str, Callable[..., Any]] = {
    "create_dot": _Arithmetic.create_dot,
    "cast_impl": _Arithmetic.cast_impl,
    "create_fdiv": _Arithmetic.create_fdiv,
    "create_exp": _elementwise(_exp, np.exp),
    "create_exp2": _elementwise(_exp2, np.exp2),
    "create_log": _elementwise(_logarithm(np.log), np.log),
    "create_log2": _elementwise(_logarithm(np.log2), np.log2),
    "create_rsqrt": _elementwise(_rsqrt, lambda x: 1 / np.sqrt(x)),
    "create_sqrt": _elementwise(_sqrt, np.sqrt),
}


@contextlib.contextmanager
def gpu_arithmetic() -> Iterator[None]:
    """Kernels that are interpreted within this context compute as on a GPU, and are given its dtypes."""
    builder = interpreter.InterpreterBuilder
    with (
        mock.patch.multiple(builder, **_REPLACED),
        mock.patch.object(launching, "interpreted", lambda: False),
    ):
        yield
