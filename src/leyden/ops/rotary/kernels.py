"""The rotary turn in Triton: one pass over the heads; its gradient is the same with the sines negated."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "x_stride_b"])
def turn(
    x, cos, sin, y, scale, num_rows, num_blocks, x_stride_b, x_stride_t, x_stride_h,
    H: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BHALF: tl.constexpr, BREST: tl.constexpr,
    ROWS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """y [B, T, H, D] of ``ROWS`` heads of one b, counted over its T * H = ``num_rows``, in ``num_blocks`` blocks.

    cos, sin: [T, HALF] float32. Dims i and i + HALF turn together; all are multiplied by ``scale``.
    """
    batch, block = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    row = block * ROWS + tl.arange(0, ROWS)
    valid = (row < num_rows)[:, None]
    token, head = (row // H).to(tl.int64), (row % H).to(tl.int64)
    x += batch.to(tl.int64) * x_stride_b + (token * x_stride_t + head * x_stride_h)[:, None]
    y += ((batch.to(tl.int64) * num_rows + row) * D)[:, None]

    i = tl.arange(0, BHALF)[None, :]
    turning = valid & (i < HALF)
    c = tl.load(cos + token[:, None] * HALF + i, mask=turning, other=0.0)
    s = tl.load(sin + token[:, None] * HALF + i, mask=turning, other=0.0)
    if INVERSE:
        s = -s
    first = tl.load(x + i, mask=turning, other=0.0).to(tl.float32)
    second = tl.load(x + i + HALF, mask=turning, other=0.0).to(tl.float32)
    tl.store(y + i, ((first * c - second * s) * scale).to(y.dtype.element_ty), mask=turning)
    tl.store(y + i + HALF, ((second * c + first * s) * scale).to(y.dtype.element_ty), mask=turning)

    rest = 2 * HALF + tl.arange(0, BREST)[None, :]
    still = valid & (rest < D)
    kept = tl.load(x + rest, mask=still, other=0.0).to(tl.float32)
    tl.store(y + rest, (kept * scale).to(y.dtype.element_ty), mask=still)
