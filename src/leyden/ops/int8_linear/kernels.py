"""Products with weights in 8 bits, in Triton: integers become floats in registers, and scales meet the sums."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def multiply(
    x, weight, scale, out, num_rows, num_columns, x_stride,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of out [num_rows, num_columns] = x [num_rows, D] weight [num_columns, D]^T * scale [num_columns].

    Every sum runs over D in the same order, so that a row has the same bits whatever other rows a tile is made for.
    Blocks of rows that read the same columns of the weight run side by side.
    """
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    row_there, column_there = row < num_rows, column < num_columns
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, D, BK):
        dim = start + tl.arange(0, BK)
        there = dim < D
        xs = tl.load(x + row[:, None] * x_stride + dim[None, :], mask=row_there[:, None] & there[None, :], other=0.0)
        at = weight + column[None, :] * D + dim[:, None]
        ws = tl.load(at, mask=column_there[None, :] & there[:, None], other=0)
        total = tl.dot(xs.to(PRODUCT), ws.to(PRODUCT), total, input_precision=PRECISION)
    total *= tl.load(scale + column, mask=column_there, other=0.0)[None, :]
    to = out + row[:, None] * num_columns + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=row_there[:, None] & column_there[None, :])
