"""Paged attention in Triton: one query a sequence, its keys cut into pieces that run side by side.

    attend    one piece's softmax and its weighted values, and the logsumexp that weighs the piece
    combine   the pieces of one sequence, in order

How many pieces there are, ``PIECES`` at most, and where they end follows from a sequence's length alone: it gives the
same bits whatever else is in the batch. Exponentials are powers of two, which the hardware has.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def piece_tokens(length, LEAST: tl.constexpr, PIECES: tl.constexpr):
    """Tokens of a piece of a sequence: a multiple of ``LEAST``."""
    return tl.maximum(tl.cdiv(tl.cdiv(length, LEAST), PIECES), 1) * LEAST


@triton.jit(do_not_specialize=["num_pieces", "table_stride_b"])
def attend(
    q, key_pages, value_pages, block_table, lengths, out, weights,
    scale, num_pieces,
    q_stride_b, q_stride_h, k_stride_p, k_stride_t, k_stride_h, v_stride_p, v_stride_t, v_stride_h,
    table_stride_b,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr,
    PAGE: tl.constexpr, LEAST: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The queries that share one key head, over one piece of one sequence's keys.

    out: [B, H, num_pieces, D] float32; weights: [B, H, num_pieces] float32, the logsumexp of each piece's scores, as a
    power of two. Pieces behind a sequence's end are not written.
    """
    sequence, key_head, piece = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    tokens = piece_tokens(length, LEAST, PIECES)
    begin = piece * tokens
    if begin >= length:
        return
    end = tl.minimum(begin + tokens, length)
    member, dim = tl.arange(0, BG), tl.arange(0, BD)
    head = key_head * GROUP + member
    inside = (member < GROUP)[:, None] & (dim < D)[None, :]
    qs = tl.load(q + sequence * q_stride_b + head[:, None] * q_stride_h + dim[None, :], mask=inside, other=0.0)
    block_table += sequence * table_stride_b
    key_pages += key_head.to(tl.int64) * k_stride_h
    value_pages += key_head.to(tl.int64) * v_stride_h
    scale *= _LOG2_E
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
        scores = tl.dot(qs.to(PRODUCT), tl.trans(ks), input_precision=PRECISION)
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
        p = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        mean = tl.dot(p.to(PRODUCT), vs, mean * shrink[:, None], input_precision=PRECISION)
        top = higher
    row = (sequence * H + head) * num_pieces + piece
    tl.store(out + row[:, None] * D + dim[None, :], mean / total[:, None], mask=inside)
    tl.store(weights + row, top + tl.log2(total), mask=member < GROUP)


@triton.jit(do_not_specialize=["num_pieces"])
def combine(
    parts, weights, lengths, out, num_pieces,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, LEAST: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """out[sequence, head] = the mean of its pieces' outputs, weighted by 2^weights; zero without a key."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + sequence).to(tl.int32)
    count = tl.cdiv(length, piece_tokens(length, LEAST, PIECES))
    piece, dim = tl.arange(0, PIECES), tl.arange(0, BD)
    row = (sequence * H + head) * num_pieces
    weight = tl.load(weights + row + piece, mask=piece < count, other=-float("inf"))
    at = parts + (row + piece)[:, None] * D + dim[None, :]
    part = tl.load(at, mask=(piece < count)[:, None] & (dim < D)[None, :], other=0.0)
    top = tl.max(weight, axis=0)
    share = tl.exp2(weight - tl.where(count > 0, top, 0.0))
    mean = tl.sum(part * share[:, None], axis=0) / tl.where(count > 0, tl.sum(share, axis=0), 1.0)
    tl.store(out + (sequence * H + head) * D + dim, mean.to(out.dtype.element_ty), mask=dim < D)
