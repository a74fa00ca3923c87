"""What lies between the matrix products of the experts, in Triton.

N tokens have k assignments each; sorted by expert they become rows, one an assignment. Dropped assignments sort behind
all others: how many rows are in use stands in device memory, in the last element of ``ends``. Rows beyond are neither
written nor read.
"""

import triton
import triton.language as tl


@triton.jit
def permute(x, row_of, ends, rows, E: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """rows[row of each assignment] = x[its token], ``BLOCK`` dims of one token: each token is read once.

    x: [N, D]; row_of: [N, K]; rows: [N * K, D].
    """
    token, dim = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_use = tl.load(ends + E - 1)
    value = tl.load(x + token * D + dim, mask=dim < D)
    for j in range(K):
        row = tl.load(row_of + token * K + j)
        tl.store(rows + row * D + dim, value, mask=(dim < D) & (row < in_use))


@triton.jit
def unpermute(rows, row_of, ends, out, E: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """out[token] = the sum of its rows in float32, always in the order of its assignments.

    rows: [N * K, D]; row_of: [N, K]; out: [N, D].
    """
    token, dim = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_use = tl.load(ends + E - 1)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for j in range(K):
        row = tl.load(row_of + token * K + j)
        total += tl.load(rows + row * D + dim, mask=(dim < D) & (row < in_use), other=0.0).to(tl.float32)
    tl.store(out + token * D + dim, total.to(out.dtype.element_ty), mask=dim < D)


@triton.jit
def activate(projected, weights, order, ends, hidden, E: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    """hidden = weight * silu(gate) * up, ``BLOCK`` dims of one row.

    projected: [rows, 2 F], gate before up; weights: [N * K] float32, by assignment; order: [rows], the assignment of
    each row; hidden: [rows, F].
    """
    row, dim = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if row >= tl.load(ends + E - 1):
        return
    weight = tl.load(weights + tl.load(order + row))
    projected += row * 2 * F + dim
    gate = tl.load(projected, mask=dim < F, other=0.0).to(tl.float32)
    up = tl.load(projected + F, mask=dim < F, other=0.0).to(tl.float32)
    active = gate * tl.sigmoid(gate) * up * weight
    tl.store(hidden + row * F + dim, active.to(hidden.dtype.element_ty), mask=dim < F)


@triton.jit
def activate_backward(
    projected, weights, order, ends, hidden, dprojected, dweights,
    E: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All dims of one row. ``hidden`` holds its gradient on entry and itself on return, for the product that follows.

    dprojected: [rows, 2 F]; dweights: [N * K] float32, by assignment, zero where it was dropped.
    """
    row = tl.program_id(0).to(tl.int64)
    assignment = tl.load(order + row)
    if row >= tl.load(ends + E - 1):
        tl.store(dweights + assignment, 0.0)
        return
    weight = tl.load(weights + assignment)
    projected += row * 2 * F
    dprojected += row * 2 * F
    hidden += row * F
    dweight = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, F, BLOCK):
        dim = start + tl.arange(0, BLOCK)
        gate = tl.load(projected + dim, mask=dim < F, other=0.0).to(tl.float32)
        up = tl.load(projected + F + dim, mask=dim < F, other=0.0).to(tl.float32)
        grad = tl.load(hidden + dim, mask=dim < F, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        dweight += grad * silu * up
        dgate = grad * weight * up * (sigmoid + silu * (1 - sigmoid))
        tl.store(hidden + dim, (silu * up * weight).to(hidden.dtype.element_ty), mask=dim < F)
        tl.store(dprojected + dim, dgate.to(dprojected.dtype.element_ty), mask=dim < F)
        tl.store(dprojected + F + dim, (grad * weight * silu).to(dprojected.dtype.element_ty), mask=dim < F)
    tl.store(dweights + assignment, tl.sum(dweight, axis=0))
