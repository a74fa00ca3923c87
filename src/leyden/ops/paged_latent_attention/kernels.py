"""Latent attention over pages in Triton: one query a sequence, what it remembers cut into pieces that run side by side.

``attend`` gives one piece's softmax and its weighted latents, and the logsumexp that weighs the piece; the pieces are
combined as those of paged attention are, in order, and are cut at the same places. All heads share what is remembered:
a program reads it once for up to 64 of them, and the latents, which are keys and values, once for both.
"""

import triton
import triton.language as tl

from leyden.ops.paged_attention.kernels import combine, piece_tokens

__all__ = ["attend", "combine"]

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["num_pieces", "table_stride_b"])
def attend(
    q, pages, block_table, lengths, out, weights,
    scale, num_pieces,
    q_stride_b, q_stride_h, p_stride_p, p_stride_t, table_stride_b,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    PAGE: tl.constexpr, LEAST: tl.constexpr, PIECES: tl.constexpr, BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BH heads over one piece of what one sequence remembers: C numbers, which are its values too, and R behind them.

    out: [B, H, num_pieces, C] float32; weights: [B, H, num_pieces] float32, the logsumexp of each piece's scores, as a
    power of two. Pieces behind a sequence's end are not written.
    """
    sequence, heads, piece = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    tokens = piece_tokens(length, LEAST, PIECES)
    begin = piece * tokens
    if begin >= length:
        return
    end = tl.minimum(begin + tokens, length)
    head, latent, rope = heads * BH + tl.arange(0, BH), tl.arange(0, BC), tl.arange(0, BR)
    is_head = head < H
    row_at = q + sequence * q_stride_b + head[:, None] * q_stride_h
    q_latent = tl.load(row_at + latent[None, :], mask=is_head[:, None] & (latent < C)[None, :], other=0.0).to(PRODUCT)
    q_rope = tl.load(row_at + C + rope[None, :], mask=is_head[:, None] & (rope < R)[None, :], other=0.0).to(PRODUCT)
    block_table += sequence * table_stride_b
    scale *= _LOG2_E
    top = tl.full([BH], -float("inf"), tl.float32)
    total = tl.zeros([BH], tl.float32)
    mean = tl.zeros([BH, BC], tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        there = token < end
        page = tl.load(block_table + token // PAGE, mask=there, other=0).to(tl.int64)
        place = (token % PAGE).to(tl.int64)
        at = pages + (page * p_stride_p + place * p_stride_t)[:, None]
        cs = tl.load(at + latent[None, :], mask=there[:, None] & (latent < C)[None, :], other=0.0).to(PRODUCT)
        rs = tl.load(at + C + rope[None, :], mask=there[:, None] & (rope < R)[None, :], other=0.0).to(PRODUCT)
        scores = tl.dot(q_rope, tl.trans(rs), input_precision=PRECISION)
        scores = tl.dot(q_latent, tl.trans(cs), scores, input_precision=PRECISION)
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
        p = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        mean = tl.dot(p.to(PRODUCT), cs, mean * shrink[:, None], input_precision=PRECISION)
        top = higher
    row = (sequence * H + head) * num_pieces + piece
    is_number = is_head[:, None] & (latent < C)[None, :]
    tl.store(out + row[:, None] * C + latent[None, :], mean / total[:, None], mask=is_number)
    tl.store(weights + row, top + tl.log2(total), mask=is_head)
