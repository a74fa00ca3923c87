"""Triton kernels between the matrix products of the experts: permutation of rows, SwiGLU, and their gradients.

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


@triton.jit
def _clear(x, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros in ``SIZE`` elements, in turns with the other programs of the second axis."""
    for block in range(tl.program_id(1), tl.cdiv(SIZE, BLOCK), tl.num_programs(1)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + at, tl.zeros([BLOCK], x.dtype.element_ty), mask=at < SIZE)


@triton.jit
def clear_idle(dgate_up, ddown, ends, D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    """The gradients of an expert without rows, which grouped products may leave as they are, become zero.

    dgate_up: [E, 2 F, D]; ddown: [E, D, F].
    """
    expert = tl.program_id(0).to(tl.int64)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    if tl.load(ends + expert) == begin:
        _clear(dgate_up + expert * (2 * F * D), 2 * F * D, BLOCK)
        _clear(ddown + expert * (D * F), D * F, BLOCK)


@triton.jit
def _mine(ends, E: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, TOGETHER: tl.constexpr):
    """This program's block of columns and its expert, where its block of rows begins, and where the expert's rows end.

    Every expert's rows are cut into blocks of ``BM``; behind the last block of the last, the beginning is the end.
    ``TOGETHER`` blocks of rows run side by side, so that a matrix that several of them share is read once.
    """
    index, block = tl.arange(0, BE), tl.program_id(1) * TOGETHER + tl.program_id(0) % TOGETHER
    end = tl.load(ends + index, mask=index < E, other=0)
    begin = tl.load(ends + index - 1, mask=(index > 0) & (index < E), other=0)
    count = tl.where(index < E, tl.cdiv(end - begin, BM), 0)
    behind = tl.cumsum(count, axis=0)
    expert = tl.sum((behind <= block).to(tl.int32), axis=0)
    mine = index == expert
    first = tl.sum(tl.where(mine, begin + (block - behind + count) * BM, 0), axis=0)
    return tl.program_id(0) // TOGETHER, expert, first, tl.sum(tl.where(mine, end, 0), axis=0)


@triton.jit(do_not_specialize=["top_k"])
def project_int8(
    x, gate_up, scales, order, weights, ends, hidden, top_k,
    E: tl.constexpr, BE: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden = weight * silu(gate) * up: ``BN`` dims of a block of one expert's rows, read where their tokens are.

    x: [N, D]; gate_up: [E, 2 F, D] int8, of which scales: [E, 2 F] float32; order: [rows], the assignment of each row;
    weights: [N * top_k] float32, by assignment; hidden: [rows, F].
    """
    block, expert, first, end = _mine(ends, E, BE, BM, TOGETHER)
    if first >= end:
        return
    row, column = first + tl.arange(0, BM), block * BN + tl.arange(0, BN)
    row_there, column_there = row < end, column < F
    assignment = tl.load(order + row, mask=row_there, other=0)
    from_x = x + (assignment // top_k)[:, None] * D
    gate_up += expert.to(tl.int64) * (2 * F * D) + column.to(tl.int64)[None, :] * D
    gate, up = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    for start in range(0, D, BK):
        dim = start + tl.arange(0, BK)
        there = dim < D
        of_weights = there[:, None] & column_there[None, :]
        xs = tl.load(from_x + dim[None, :], mask=row_there[:, None] & there[None, :], other=0.0).to(PRODUCT)
        gates = tl.load(gate_up + dim[:, None], mask=of_weights, other=0).to(PRODUCT)
        ups = tl.load(gate_up + F * D + dim[:, None], mask=of_weights, other=0).to(PRODUCT)
        gate = tl.dot(xs, gates, gate, input_precision=PRECISION)
        up = tl.dot(xs, ups, up, input_precision=PRECISION)
    scales += expert * 2 * F + column
    gate *= tl.load(scales, mask=column_there, other=0.0)[None, :]
    up *= tl.load(scales + F, mask=column_there, other=0.0)[None, :]
    active = gate * tl.sigmoid(gate) * up * tl.load(weights + assignment, mask=row_there, other=0.0)[:, None]
    to = hidden + row.to(tl.int64)[:, None] * F + column[None, :]
    tl.store(to, active.to(hidden.dtype.element_ty), mask=row_there[:, None] & column_there[None, :])


@triton.jit
def collect_int8(
    hidden, down, scales, ends, rows,
    E: tl.constexpr, BE: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """rows [rows, D] = hidden [rows, F] down^T: ``BN`` dims of a block of one expert's rows.

    down: [E, D, F] int8, of which scales: [E, D] float32.
    """
    block, expert, first, end = _mine(ends, E, BE, BM, TOGETHER)
    if first >= end:
        return
    row, column = first + tl.arange(0, BM), block * BN + tl.arange(0, BN)
    row_there, column_there = row < end, column < D
    hidden += row.to(tl.int64)[:, None] * F
    down += expert.to(tl.int64) * (D * F) + column.to(tl.int64)[None, :] * F
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, F, BK):
        dim = start + tl.arange(0, BK)
        there = dim < F
        hiddens = tl.load(hidden + dim[None, :], mask=row_there[:, None] & there[None, :], other=0.0).to(PRODUCT)
        downs = tl.load(down + dim[:, None], mask=there[:, None] & column_there[None, :], other=0).to(PRODUCT)
        total = tl.dot(hiddens, downs, total, input_precision=PRECISION)
    total *= tl.load(scales + expert * D + column, mask=column_there, other=0.0)[None, :]
    to = rows + row.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(to, total.to(rows.dtype.element_ty), mask=row_there[:, None] & column_there[None, :])
