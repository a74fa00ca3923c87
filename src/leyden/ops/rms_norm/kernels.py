"""The norms in Triton: rows held whole in registers, read once in each direction.

With x = alpha kept + beta added where there is a residual, r = (mean x^2 + eps)^-1/2, n = x r, and s = sigmoid(gate)
(1 without one):  y = n w s.  Then, with e = dy w s:  dx = r (e - n mean(n e)),  dw = sum_rows n dy s,
dgate = n dy w s (1 - s),  and dkept = alpha dx,  dadded = beta dx.
"""

import triton
import triton.language as tl


@triton.jit
def _load(x, stride, row, dim, inside):
    """[rows, dims] in float32, zero outside."""
    return tl.load(x + row[:, None] * stride + dim[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(x, value, row, dim, inside, D: tl.constexpr):
    """To contiguous rows of D."""
    tl.store(x + row[:, None] * D + dim[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def normalise(
    x, added, gate, weight, y, rstd, num_rows, eps, alpha, beta, x_stride, added_stride, gate_stride,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, HAS_ADDED: tl.constexpr, HAS_GATE: tl.constexpr,
):  # fmt: skip
    """y [rows, D] and r [rows] of ``ROWS`` rows; x is the kept half of the residual where something is added."""
    row, dim = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BD)
    inside = (row < num_rows)[:, None] & (dim < D)[None, :]
    xs = _load(x, x_stride, row, dim, inside)
    if HAS_ADDED:
        xs = xs * alpha + _load(added, added_stride, row, dim, inside) * beta
    r = tl.rsqrt(tl.sum(xs * xs, axis=1) / D + eps)
    tl.store(rstd + row, r, mask=row < num_rows)
    ys = xs * r[:, None] * tl.load(weight + dim, mask=dim < D, other=0.0)[None, :]
    if HAS_GATE:
        ys *= tl.sigmoid(_load(gate, gate_stride, row, dim, inside))
    _store(y, ys, row, dim, inside, D)


@triton.jit(do_not_specialize=["num_rows"])
def differentiate(
    dy, x, added, gate, weight, rstd, dx, dadded, dgate, dweight,
    num_rows, alpha, beta, dy_stride, x_stride, added_stride, gate_stride,
    D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, HAS_ADDED: tl.constexpr, HAS_GATE: tl.constexpr,
):  # fmt: skip
    """The gradients of every so many-th block of rows, and what these rows add to the weight's: [programs, D] float32.

    A program adds up its rows one after another, and programs are added up in their order: the same bits every time.
    """
    dim = tl.arange(0, BD)
    dw = tl.zeros([ROWS, BD], dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (dim < D)[None, :]
        xs = _load(x, x_stride, row, dim, inside)
        if HAS_ADDED:
            xs = xs * alpha + _load(added, added_stride, row, dim, inside) * beta
        r = tl.load(rstd + row, mask=row < num_rows, other=0.0)[:, None]
        n = xs * r
        e = _load(dy, dy_stride, row, dim, inside)
        w = tl.load(weight + dim, mask=dim < D, other=0.0)[None, :]  # from the cache, rather than kept in registers
        if HAS_GATE:
            opened = tl.sigmoid(_load(gate, gate_stride, row, dim, inside))
            e *= opened
            _store(dgate, n * e * w * (1 - opened), row, dim, inside, D)
        dw += n * e
        e *= w
        dxs = r * (e - n * (tl.sum(n * e, axis=1) / D)[:, None])
        if HAS_ADDED:
            _store(dadded, dxs * beta, row, dim, inside, D)
            dxs *= alpha
        _store(dx, dxs, row, dim, inside, D)
    tl.store(dweight + tl.program_id(0) * D + dim, tl.sum(dw, axis=0), mask=dim < D)
