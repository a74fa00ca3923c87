"""Attention over ranges of keys in Triton, and its gradients; scores are formed again in the backward.

    attend                  a block of queries against the keys that they see: output and log-sum-exp
    differentiate_queries   the same walk, for dq
    differentiate_keys      a block of keys against the queries that see them, for dk and dv

Shapes: q, dout [T, Hq, D], k, v [S, Hkv, D]; blocks of BM queries and BN keys; dims are padded to BD.
"""

import triton
import triton.language as tl


@triton.jit
def _meets(first, last, row, T):
    """Of a block's queries: the first keys they see, those behind the last, and the range of all of these."""
    begin = tl.load(first + row, mask=row < T, other=0)
    end = tl.load(last + row, mask=row < T, other=0)
    low = tl.min(tl.where(begin < end, begin, 2147483647), axis=0)
    high = tl.max(tl.where(begin < end, end, 0), axis=0)
    return begin, end, low, high


@triton.jit
def _rows(x, row, count, stride_t, dim, D: tl.constexpr):
    """Rows of x [count, D] at ``row``, zero beyond."""
    at = x + row.to(tl.int64)[:, None] * stride_t + dim[None, :]
    return tl.load(at, mask=(row < count)[:, None] & (dim < D)[None, :], other=0.0)


@triton.jit
def attend(
    q, k, v, first, last, out, lse,
    scale, T, S, q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [T, H, D] and lse [T, H], float32; zero and minus infinity where a query sees nothing."""
    block, head = tl.program_id(0), tl.program_id(1)
    row, dim = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    begin, end, low, high = _meets(first, last, row, T)
    k += (head // GROUP).to(tl.int64) * k_stride_h
    v += (head // GROUP).to(tl.int64) * v_stride_h
    qs = _rows(q + head * q_stride_h, row, T, q_stride_t, dim, D).to(PRODUCT)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    mean = tl.zeros([BM, BD], tl.float32)
    for start in range(low, high, BN):
        key = start + tl.arange(0, BN)
        ks = _rows(k, key, S, k_stride_t, dim, D).to(PRODUCT)
        scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * scale
        seen = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp(scores - finite[:, None])
        shrink = tl.exp(top - finite)
        total = total * shrink + tl.sum(p, axis=1)
        vs = _rows(v, key, S, v_stride_t, dim, D).to(PRODUCT)
        mean = mean * shrink[:, None] + tl.dot(p.to(PRODUCT), vs, input_precision=PRECISION)
        top = higher
    at = row.to(tl.int64) * H + head
    weight = tl.where(total > 0, total, 1.0)
    mean = mean / weight[:, None]
    tl.store(out + at[:, None] * D + dim[None, :], mean, mask=(row < T)[:, None] & (dim < D)[None, :])
    tl.store(lse + at, top + tl.log(weight), mask=row < T)


@triton.jit
def _gradients(qs, ks, vs, douts, lses, deltas, seen, scale, PRECISION: tl.constexpr):
    """P and dS [BM, BN] of a block of queries and one of keys; a query that sees nothing at all has any finite lse."""
    scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * scale
    p = tl.exp(tl.where(seen, scores - lses[:, None], -float("inf")))
    dp = tl.dot(douts, tl.trans(vs), input_precision=PRECISION)
    return p, p * (dp - deltas[:, None]) * scale


@triton.jit
def differentiate_queries(
    dout, q, k, v, lse, delta, first, last, dq,
    scale, T, S, o_stride_t, o_stride_h, q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq [T, H, D] float32."""
    block, head = tl.program_id(0), tl.program_id(1)
    row, dim = block * BM + tl.arange(0, BM), tl.arange(0, BD)
    begin, end, low, high = _meets(first, last, row, T)
    k += (head // GROUP).to(tl.int64) * k_stride_h
    v += (head // GROUP).to(tl.int64) * v_stride_h
    at = row.to(tl.int64) * H + head
    qs = _rows(q + head * q_stride_h, row, T, q_stride_t, dim, D).to(PRODUCT)
    douts = _rows(dout + head * o_stride_h, row, T, o_stride_t, dim, D).to(PRODUCT)
    lses = tl.load(lse + at, mask=row < T, other=0.0)
    lses = tl.where(lses == -float("inf"), 0.0, lses)
    deltas = tl.load(delta + at, mask=row < T, other=0.0)
    total = tl.zeros([BM, BD], tl.float32)
    for start in range(low, high, BN):
        key = start + tl.arange(0, BN)
        ks = _rows(k, key, S, k_stride_t, dim, D).to(PRODUCT)
        vs = _rows(v, key, S, v_stride_t, dim, D).to(PRODUCT)
        seen = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
        _, ds = _gradients(qs, ks, vs, douts, lses, deltas, seen, scale, PRECISION)
        total += tl.dot(ds.to(PRODUCT), ks, input_precision=PRECISION)
    tl.store(dq + at[:, None] * D + dim[None, :], total, mask=(row < T)[:, None] & (dim < D)[None, :])


@triton.jit
def differentiate_keys(
    dout, q, k, v, lse, delta, first, last, queries_from, queries_to, dk, dv,
    scale, T, S, o_stride_t, o_stride_h, q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv [S, H / GROUP, D] float32; the queries that see a block of keys lie from ``queries_from`` on."""
    block, key_head = tl.program_id(0), tl.program_id(1)
    key, dim = block * BN + tl.arange(0, BN), tl.arange(0, BD)
    ks = _rows(k + key_head.to(tl.int64) * k_stride_h, key, S, k_stride_t, dim, D).to(PRODUCT)
    vs = _rows(v + key_head.to(tl.int64) * v_stride_h, key, S, v_stride_t, dim, D).to(PRODUCT)
    low, high = tl.load(queries_from + block), tl.load(queries_to + block)
    total_k = tl.zeros([BN, BD], tl.float32)
    total_v = tl.zeros([BN, BD], tl.float32)
    for member in range(GROUP):
        head = key_head * GROUP + member
        for start in range(low, high, BM):
            row = start + tl.arange(0, BM)
            there = row < high
            begin = tl.load(first + row, mask=there, other=0)
            end = tl.load(last + row, mask=there, other=0)
            at = row.to(tl.int64) * H + head
            qs = _rows(q + head * q_stride_h, row, T, q_stride_t, dim, D).to(PRODUCT)
            douts = _rows(dout + head * o_stride_h, row, T, o_stride_t, dim, D).to(PRODUCT)
            lses = tl.load(lse + at, mask=there, other=0.0)
            lses = tl.where(lses == -float("inf"), 0.0, lses)
            deltas = tl.load(delta + at, mask=there, other=0.0)
            seen = (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])
            p, ds = _gradients(qs, ks, vs, douts, lses, deltas, seen, scale, PRECISION)
            total_v += tl.dot(tl.trans(p.to(PRODUCT)), douts, input_precision=PRECISION)
            total_k += tl.dot(tl.trans(ds.to(PRODUCT)), qs, input_precision=PRECISION)
    at = key.to(tl.int64) * (H // GROUP) + key_head
    inside = (key < S)[:, None] & (dim < D)[None, :]
    tl.store(dk + at[:, None] * D + dim[None, :], total_k, mask=inside)
    tl.store(dv + at[:, None] * D + dim[None, :], total_v, mask=inside)
