"""SiLU and split in Triton: one pass over the rows in each direction. silu'(x) = s (1 + x (1 - s)), s = sigmoid(x)."""

import triton
import triton.language as tl


@triton.jit
def _elements(num_rows, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr):
    """This program's rows and dims of a third, [rows, 1] and [1, dims], and which of them there are."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    dim = tl.arange(0, BK)[None, :]
    return row, dim, (row < num_rows) & (dim < K)


@triton.jit
def _forward(x, y, inside):
    x = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    tl.store(y, (x * tl.sigmoid(x)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy, x, dx, inside):
    dy = tl.load(dy, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(x)
    tl.store(dx, (dy * opened * (1 + x * (1 - opened))).to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def split(qkv, q, k, v, num_rows, row_stride, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr):
    """qkv [rows, 3K] to q, k and v [rows, K]."""
    row, dim, inside = _elements(num_rows, K, BK, ROWS)
    qkv += row * row_stride + dim
    to = row * K + dim
    _forward(qkv, q + to, inside)
    _forward(qkv + K, k + to, inside)
    _forward(qkv + 2 * K, v + to, inside)


@triton.jit(do_not_specialize=["num_rows"])
def join(dq, dk, dv, qkv, dqkv, num_rows, row_stride, K: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr):
    """The gradient of qkv [rows, 3K] from those of q, k and v [rows, K]."""
    row, dim, inside = _elements(num_rows, K, BK, ROWS)
    qkv += row * row_stride + dim
    dqkv += row * 3 * K + dim
    of = row * K + dim
    _backward(dq + of, qkv, dqkv, inside)
    _backward(dk + of, qkv + K, dqkv + K, inside)
    _backward(dv + of, qkv + 2 * K, dqkv + 2 * K, inside)
