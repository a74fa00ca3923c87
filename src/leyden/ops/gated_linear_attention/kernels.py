"""Gated linear attention in Triton: what is done within chunks, before and behind the walk from chunk to chunk.

    weigh           of each chunk: the weights of its tokens for each other, its queries decayed since its beginning,
                    its keys decayed until its end, and the sums of its log decays
    summarise, scan, attend
                    the walk, as in lightning attention (``lightning_attention/kernels.py``, GATED)
    differentiate   of each chunk: the gradients of q, k and the decays, from what the walks in both directions gave

The weight of token j for token i is ``sum_d q_id k_jd exp(g_{j+1,d} + ... + g_{i,d})``. As in ``portable.py``, blocks
of 2s tokens are halved for s = 1, 2, 4, ..: between the halves a decay is one from the left token to the boundary times
one from the boundary to the right token. Both are exp of a sum of log decays, of which none is taken back, so that
neither overflows and none is lost behind a token that forgets all. At each s every token is in a left or in a right
half, so that one exponential a token and dim serves all pairs of halves, and one C x C product their weights, of which
those within a block count.

The gradient of a log decay is the sum over all pairs that it lies between. Nothing is taken back there either: a pair
within a chunk is counted at the s where its tokens are in two halves, in each of them by a sum to the boundary.

Sums are products with matrices of zeros and ones. Of bfloat16 tokens their terms are taken as two bfloat16 numbers, 16
bits, which is beyond what exp of them is rounded to; the sums over whole chunks, which states decay by, are float32.
"""

import triton
import triton.language as tl

from leyden.ops.lightning_attention.kernels import power, product, program_of, segment_of, tile


@triton.jit
def _sums(which, x, PRODUCT: tl.constexpr, PRECISION: tl.constexpr):
    """which @ x for a matrix of truths [C, C] and float32 x [C, D]."""
    if PRODUCT == tl.float32:  # noqa: SIM300
        result = product(which.to(tl.float32), x, PRECISION)
    else:
        high = x.to(PRODUCT)
        low = (x - high.to(tl.float32)).to(PRODUCT)
        ones = which.to(PRODUCT)
        result = product(ones, high, PRECISION) + product(ones, low, PRECISION)
    return result


@triton.jit
def _log_decays(at, stride_t, token, valid, dim, K: tl.constexpr):
    """[C, D] float32, zero behind the chunk; of those that forget all, so much that all sums are finite. NaN stay."""
    gs = tile(at, stride_t, token, valid, dim, K)
    return tl.where(gs < -1e30, -1e30, gs)


@triton.jit
def _near(qs, ks, gs, level, C: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr):
    """Of blocks of 2s tokens, s = 2^level, from queries, keys and log decays [C, D].

    Returns:
        which tokens lie between each token and the boundary of its block's halves [C, C], the decays over them, the
        queries of right halves so decayed, the keys of left ones [C, D], and which pairs meet over a boundary [C, C].
    """
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    right = (i >> level) % 2 == 1
    between = (i >> level == j >> level) & tl.where(right, j <= i, j > i)
    decay = power(_sums(between, gs, PRODUCT, PRECISION), PRODUCT)
    pairs = (i >> level) - (j >> level) == tl.where(right, 1, C)
    return between, decay, tl.where(right, qs * decay, 0.0), tl.where(right, 0.0, ks * decay), pairs


@triton.jit(do_not_specialize=["num_documents", "length"])
def weigh(
    q, k, log_decay, weights, queries, keys, totals, cu_seqlens, num_documents, length,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, decay_stride_t, decay_stride_h,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, LEVELS: tl.constexpr, RAGGED: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk and head, ``BK`` key dims at a time; C = 2^LEVELS.

    weights: [tokens, H, C], rows by the token that sees, columns by the tokens of its chunk; queries, keys: [tokens, H,
    K]; totals: [chunks, H, K] float32.
    """
    chunk, head, _block = program_of(H, 1)
    _document, start, end, _whole = segment_of(chunk, cu_seqlens, num_documents, length, C, True, RAGGED)
    if start >= end:
        return
    token = tl.arange(0, C)
    valid = token < end - start
    i, j = token[:, None], token[None, :]
    q += start * q_stride_t + head * q_stride_h
    k += start * k_stride_t + head * k_stride_h
    log_decay += start * decay_stride_t + head * decay_stride_h
    scores = tl.zeros([C, C], dtype=tl.float32)
    for first in range(0, K, BK):
        dim = first + tl.arange(0, BK)
        qs = tile(q, q_stride_t, token, valid, dim, K).to(tl.float32)
        ks = tile(k, k_stride_t, token, valid, dim, K).to(tl.float32)
        gs = _log_decays(log_decay, decay_stride_t, token, valid, dim, K)
        tl.store(totals + (chunk * H + head) * K + dim, tl.sum(gs, axis=0), mask=dim < K)
        at = (start * H + head) * K + i * (H * K) + dim[None, :]
        inside = valid[:, None] & (dim < K)[None, :]
        since = qs * power(_sums(j <= i, gs, PRODUCT, PRECISION), PRODUCT)
        tl.store(queries + at, since.to(queries.dtype.element_ty), mask=inside)
        left = ks * power(_sums(j > i, gs, PRODUCT, PRECISION), PRODUCT)
        tl.store(keys + at, left.to(keys.dtype.element_ty), mask=inside)
        scores += tl.where(i == j, tl.sum(qs * ks, axis=1)[:, None], 0.0)
        for level in range(LEVELS):
            _between, _decay, near_q, near_k, pairs = _near(qs, ks, gs, level, C, PRODUCT, PRECISION)
            met = product(near_q.to(PRODUCT), tl.trans(near_k.to(PRODUCT)), PRECISION)
            scores += tl.where(pairs, met, 0.0)
    at_weights = weights + (start * H + head) * C + i * (H * C) + j
    tl.store(at_weights, scores.to(weights.dtype.element_ty), mask=valid[:, None])


@triton.jit(do_not_specialize=["num_documents", "length"])
def differentiate(
    q, k, v, dout, log_decay, far_q, far_k, met, dq, dk, dlog_decay, cu_seqlens, num_documents, length,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h, dout_stride_t, dout_stride_h,
    decay_stride_t, decay_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, RAGGED: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk and head, ``BK`` key dims at a time, as :func:`weigh`.

    far_q: [tokens, H, K], the gradients of the decayed queries by the state before the chunk; far_k: those of the
    decayed keys by the state's gradient behind it; met: [chunks, H, K], the gradient of any of the chunk's log decays
    by what was before the chunk and is read behind it.
    """
    chunk, head, _block = program_of(H, 1)
    _document, start, end, _whole = segment_of(chunk, cu_seqlens, num_documents, length, C, True, RAGGED)
    if start >= end:
        return
    token = tl.arange(0, C)
    valid = token < end - start
    i, j = token[:, None], token[None, :]
    v += start * v_stride_t + head * v_stride_h
    dout += start * dout_stride_t + head * dout_stride_h
    scores = tl.zeros([C, C], dtype=tl.float32)
    for first in range(0, V, BV):
        dim = first + tl.arange(0, BV)
        dos = tile(dout, dout_stride_t, token, valid, dim, V).to(PRODUCT)
        vs = tile(v, v_stride_t, token, valid, dim, V).to(PRODUCT)
        scores += product(dos, tl.trans(vs), PRECISION)
    own = tl.sum(tl.where(i == j, scores, 0.0), axis=1)[:, None]
    scores = scores.to(PRODUCT)  # here, since this takes fewer registers
    q += start * q_stride_t + head * q_stride_h
    k += start * k_stride_t + head * k_stride_h
    log_decay += start * decay_stride_t + head * decay_stride_h
    for first in range(0, K, BK):
        dim = first + tl.arange(0, BK)
        qs = tile(q, q_stride_t, token, valid, dim, K).to(tl.float32)
        ks = tile(k, k_stride_t, token, valid, dim, K).to(tl.float32)
        gs = _log_decays(log_decay, decay_stride_t, token, valid, dim, K)
        at = (start * H + head) * K + i * (H * K) + dim[None, :]
        inside = valid[:, None] & (dim < K)[None, :]
        dqs = tl.load(far_q + at, mask=inside, other=0.0).to(tl.float32)
        dqs *= power(_sums(j <= i, gs, PRODUCT, PRECISION), PRODUCT)
        dks = tl.load(far_k + at, mask=inside, other=0.0).to(tl.float32)
        dks *= power(_sums(j > i, gs, PRODUCT, PRECISION), PRODUCT)
        dgs = tl.load(met + (chunk * H + head) * K + dim, mask=dim < K, other=0.0)[None, :]
        dgs = dgs + _sums(j >= i, qs * dqs, PRODUCT, PRECISION) + _sums(j < i, ks * dks, PRODUCT, PRECISION)
        dqs += own * ks
        dks += own * qs
        for level in range(LEVELS):
            between, decay, near_q, near_k, pairs = _near(qs, ks, gs, level, C, PRODUCT, PRECISION)
            by_pairs = tl.where(pairs, scores, 0.0)
            by_keys = product(by_pairs, near_k.to(PRODUCT), PRECISION)
            by_queries = product(tl.trans(by_pairs), near_q.to(PRODUCT), PRECISION)
            dqs += decay * by_keys
            dks += decay * by_queries
            # Of each pair one token is here, which all log decays between it and the boundary are for.
            dgs += _sums(tl.trans(between), near_q * by_keys + near_k * by_queries, PRODUCT, PRECISION)
        tl.store(dq + at, dqs.to(dq.dtype.element_ty), mask=inside)
        tl.store(dk + at, dks.to(dk.dtype.element_ty), mask=inside)
        tl.store(dlog_decay + at, dgs, mask=inside)
