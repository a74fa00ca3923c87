"""Paged attention in Triton: one query a sequence, its keys cut into splits that run side by side.

    attend    one split's softmax and its weighted values, and the logsumexp that weighs the split
    combine   the splits of one sequence, in order

Splits are cut by tokens alone, so a sequence gives the same bits whatever else is in the batch.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    q, key_pages, value_pages, block_table, lengths, out, weights,
    scale, num_splits,
    q_stride_b, q_stride_h, k_stride_p, k_stride_t, k_stride_h, v_stride_p, v_stride_t, v_stride_h,
    table_stride_b,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr,
    PAGE: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The queries that share one key head, over ``SPLIT`` keys of one sequence.

    out: [B, H, splits, D] float32; weights: [B, H, splits] float32, the logsumexp of each split's scores. Splits
    behind a sequence's end are not written.
    """
    sequence, key_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    begin = split * SPLIT
    if begin >= length:
        return
    end = tl.minimum(begin + SPLIT, length)
    member, dim = tl.arange(0, BG), tl.arange(0, BD)
    head = key_head * GROUP + member
    inside = (member < GROUP)[:, None] & (dim < D)[None, :]
    qs = tl.load(q + sequence * q_stride_b + head[:, None] * q_stride_h + dim[None, :], mask=inside, other=0.0)
    block_table += sequence * table_stride_b
    key_pages += key_head.to(tl.int64) * k_stride_h
    value_pages += key_head.to(tl.int64) * v_stride_h
    top = tl.full([BG], -float("inf"), tl.float32)
    total = tl.zeros([BG], tl.float32)
    mean = tl.zeros([BG, BD], tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        there = token < end
        page = tl.load(block_table + token // PAGE, mask=there, other=0).to(tl.int64)
        place = (token % PAGE).to(tl.int64)
        valid = there[:, None] & (dim < D)[None, :]
        k_at = key_pages + (page * k_stride_p + place * k_stride_t)[:, None] + dim[None, :]
        v_at = value_pages + (page * v_stride_p + place * v_stride_t)[:, None] + dim[None, :]
        ks = tl.load(k_at, mask=valid, other=0.0).to(PRODUCT)
        vs = tl.load(v_at, mask=valid, other=0.0).to(PRODUCT)
        scores = tl.dot(qs.to(PRODUCT), tl.trans(ks), input_precision=PRECISION) * scale
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        mean = mean * shrink[:, None] + tl.dot(p.to(PRODUCT), vs, input_precision=PRECISION)
        top = higher
    row = (sequence * H + head) * num_splits + split
    tl.store(out + row[:, None] * D + dim[None, :], mean / total[:, None], mask=inside)
    tl.store(weights + row, top + tl.log(total), mask=member < GROUP)


@triton.jit
def combine(
    parts, weights, lengths, out, num_splits,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[sequence, head] = the mean of its splits' outputs, weighted by exp(weights); zero without a key."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    count = tl.cdiv(tl.load(lengths + sequence).to(tl.int32), SPLIT)
    dim = tl.arange(0, BD)
    row = (sequence * H + head) * num_splits
    top, total = -float("inf"), 0.0
    mean = tl.zeros([BD], tl.float32)
    for start in range(0, count, BLOCK):
        split = start + tl.arange(0, BLOCK)
        there = split < count
        weight = tl.load(weights + row + split, mask=there, other=-float("inf"))
        at = parts + (row + split)[:, None] * D + dim[None, :]
        part = tl.load(at, mask=there[:, None] & (dim < D)[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(weight, axis=0))
        share, shrink = tl.exp(weight - higher), tl.exp(top - higher)
        total = total * shrink + tl.sum(share, axis=0)
        mean = mean * shrink + tl.sum(part * share[:, None], axis=0)
        top = higher
    mean = mean / tl.where(count > 0, total, 1.0)
    tl.store(out + (sequence * H + head) * D + dim, mean.to(out.dtype.element_ty), mask=dim < D)
