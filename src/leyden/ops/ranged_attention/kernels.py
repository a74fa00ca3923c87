"""Attention over ranges of keys in Triton, and its gradients; scores are formed again in the backward.

    attend                  a block of queries against the keys that they see: output and log-sum-exp
    differentiate_queries   the same walk, for dq
    find                    the queries that see each block of keys
    differentiate_keys      a block of keys against these queries, for dk and dv

A query and a key that do not meet may be of two documents, of which one holds a NaN or an infinity, and a probability
of zero times these is NaN. So each of the three that multiply is launched a second time (CAREFUL). Where ``total``, the
sum of all numbers that may be so, is finite, that launch ends at once. Else it does the work again, with zeros in the
place of numbers that are not finite, and with NaN for the probabilities of what does meet them.

Only blocks in which a query does not see a key are masked. Exponentials are powers of two, which the hardware has:
scores are multiplied by log2(e) / sqrt(D), and log-sum-exps are converted on the way in and out.

Shapes: q, dout [T, Hq, D], k, v [S, Hkv, D]; blocks of BM queries and BN keys; dims are padded to BD.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LARGEST = tl.constexpr(2147483647)


@triton.jit
def _mine(T, GROUP: tl.constexpr, BM: tl.constexpr):
    """This program's key head, query head, and block of queries [BM].

    The last blocks, which see most keys where attention is causal, come first, all heads of a group together.
    """
    block = tl.num_programs(0) // GROUP - 1 - tl.program_id(0) // GROUP
    key_head = tl.program_id(1).to(tl.int64)
    return key_head, key_head * GROUP + tl.program_id(0) % GROUP, block * BM + tl.arange(0, BM)


@triton.jit
def _meets(first, last, row, T):
    """Of a block's queries: the first keys they see and those behind the last [BM]; the range of all of these, and that
    which every query sees."""
    there = row < T
    begin = tl.load(first + row, mask=there, other=0)
    end = tl.load(last + row, mask=there, other=0)
    sees = begin < end
    low = tl.min(tl.where(sees, begin, _LARGEST), axis=0)
    high = tl.max(tl.where(sees, end, 0), axis=0)
    # Rows beyond the last query do not count.
    all_from = tl.max(tl.where(there, begin, 0), axis=0)
    all_to = tl.min(tl.where(there, end, _LARGEST), axis=0)
    return begin, end, low, high, all_from, all_to


@triton.jit
def _rows(x, start, count, stride_t, dim, D: tl.constexpr, R: tl.constexpr):
    """``R`` rows of x [count, D] from ``start`` on, zero beyond."""
    row = tl.arange(0, R)
    x += tl.cast(start, tl.int64) * stride_t
    inside = (row < count - start)[:, None] & (dim < D)[None, :]
    return tl.load(x + row[:, None] * stride_t + dim[None, :], mask=inside, other=0.0)


@triton.jit
def _cleaned(x):
    """x [R, D] with zeros for its NaNs and infinities, and which rows [R] have such."""
    finite = tl.abs(x) < float("inf")
    return tl.where(finite, x, 0.0).to(x.dtype), tl.min(finite.to(tl.int32), axis=1) == 0


@triton.jit
def _sees(key, begin, end):
    """[BM, BN], of queries that see the keys from ``begin`` up to ``end`` [BM]."""
    return (key[None, :] >= begin[:, None]) & (key[None, :] < end[:, None])


@triton.jit
def _facts(lse, delta, start, count, head, H: tl.constexpr, R: tl.constexpr):
    """Of ``R`` queries of one head: the log-sum-exps in powers of two, and the deltas.

    The log-sum-exp of a query that sees nothing at all is minus infinity, and what comes of it is masked.
    """
    row = tl.arange(0, R)
    first = tl.cast(start, tl.int64) * H + head
    lses = tl.load(lse + first + row * H, mask=row < count - start, other=0.0)
    return lses * _LOG2_E, tl.load(delta + first + row * H, mask=row < count - start, other=0.0)


@triton.jit(do_not_specialize=["T", "S"])
def attend(
    q, k, v, first, last, out, lse, total,
    scale, T, S, q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAREFUL: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [T, H, D] and lse [T, H], float32; zero and minus infinity where a query sees nothing."""
    if CAREFUL and tl.abs(tl.load(total)) < float("inf"):
        return
    key_head, head, row = _mine(T, GROUP, BM)
    begin, end, low, high, all_from, all_to = _meets(first, last, row, T)
    dim = tl.arange(0, BD)
    k += key_head * k_stride_h
    v += key_head * v_stride_h
    qs = _rows(q + head * q_stride_h, tl.min(row, axis=0), T, q_stride_t, dim, D, BM).to(PRODUCT)
    scale *= _LOG2_E
    top = tl.full([BM], -float("inf"), tl.float32)
    weight = tl.zeros([BM], tl.float32)
    mean = tl.zeros([BM, BD], tl.float32)
    for start in range(low, high, BN):
        ks = _rows(k, start, S, k_stride_t, dim, D, BN).to(PRODUCT)
        vs = _rows(v, start, S, v_stride_t, dim, D, BN).to(PRODUCT)
        scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION)
        if CAREFUL or (start < all_from) | (start + BN > all_to):
            scores = tl.where(_sees(start + tl.arange(0, BN), begin, end), scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        # What is summed is what is multiplied, so that the output is a mean of values whatever is rounded: the backward
        # subtracts its product with dO from dP, and where one probability is close to 1 the two are nearly equal.
        p = tl.exp2(scores * scale - finite[:, None]).to(PRODUCT)
        shrink = tl.exp2(top - finite)
        weight = weight * shrink + tl.sum(p.to(tl.float32), axis=1)
        if CAREFUL:
            vs, stray = _cleaned(vs)
            stray_seen = _sees(start + tl.arange(0, BN), begin, end) & stray[None, :]
            p = tl.where(stray_seen, float("nan"), p).to(PRODUCT)
        mean = tl.dot(p, vs, mean * shrink[:, None], input_precision=PRECISION)
        top = higher
    at = row.to(tl.int64) * H + head
    weight = tl.where(weight > 0, weight, 1.0)
    inside = (row < T)[:, None] & (dim < D)[None, :]
    tl.store(out + at[:, None] * D + dim[None, :], mean / weight[:, None], mask=inside)
    tl.store(lse + at, (top + tl.log2(weight)) / _LOG2_E, mask=row < T)


@triton.jit(do_not_specialize=["T", "S"])
def differentiate_queries(
    dout, q, k, v, lse, delta, first, last, dq, total,
    scale, T, S, o_stride_t, o_stride_h, q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAREFUL: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq [T, H, D] float32."""
    if CAREFUL and tl.abs(tl.load(total)) < float("inf"):
        return
    key_head, head, row = _mine(T, GROUP, BM)
    begin, end, low, high, all_from, all_to = _meets(first, last, row, T)
    dim = tl.arange(0, BD)
    k += key_head * k_stride_h
    v += key_head * v_stride_h
    at = row.to(tl.int64) * H + head
    from_row = tl.min(row, axis=0)
    qs = _rows(q + head * q_stride_h, from_row, T, q_stride_t, dim, D, BM).to(PRODUCT)
    douts = _rows(dout + head * o_stride_h, from_row, T, o_stride_t, dim, D, BM).to(PRODUCT)
    lses, deltas = _facts(lse, delta, from_row, T, head, H, BM)
    sum_k = tl.zeros([BM, BD], tl.float32)
    for start in range(low, high, BN):
        ks = _rows(k, start, S, k_stride_t, dim, D, BN).to(PRODUCT)
        vs = _rows(v, start, S, v_stride_t, dim, D, BN).to(PRODUCT)
        if CAREFUL:
            ks, stray = _cleaned(ks)
        exponents = tl.dot(qs, tl.trans(ks), input_precision=PRECISION) * (scale * _LOG2_E) - lses[:, None]
        if CAREFUL or (start < all_from) | (start + BN > all_to):
            exponents = tl.where(_sees(start + tl.arange(0, BN), begin, end), exponents, -float("inf"))
        dp = tl.dot(douts, tl.trans(vs), input_precision=PRECISION)
        ds = tl.exp2(exponents) * (dp - deltas[:, None])
        if CAREFUL:
            ds = tl.where(stray[None, :], float("nan"), ds)
            ds = tl.where(_sees(start + tl.arange(0, BN), begin, end), ds, 0.0)
        sum_k = tl.dot(ds.to(PRODUCT), ks, sum_k, input_precision=PRECISION)
    inside = (row < T)[:, None] & (dim < D)[None, :]
    tl.store(dq + at[:, None] * D + dim[None, :], sum_k * scale, mask=inside)


@triton.jit(do_not_specialize=["T", "bits", "num_blocks"])
def find(first, last, bounds, T, bits, num_blocks, BN: tl.constexpr, BLOCK: tl.constexpr):
    """bounds [4, num_blocks] int32: the queries that see something of a block of keys, and those that see all of it.

    From the first of each up to behind the last: as neither bound falls, binary searches find them. T has ``bits``.
    """
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin, end = block * BN, (block + 1) * BN
    seen_from, seen_to = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    whole_from, whole_to = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for bit in range(bits):
        step = 1 << (bits - 1 - bit)
        seen_from += tl.where(_before(last, seen_from + step, T, begin + 1), step, 0)
        seen_to += tl.where(_before(first, seen_to + step, T, end), step, 0)
        whole_from += tl.where(_before(last, whole_from + step, T, end), step, 0)
        whole_to += tl.where(_before(first, whole_to + step, T, begin + 1), step, 0)
    bounds += block
    there = block < num_blocks
    tl.store(bounds, seen_from, mask=there)
    tl.store(bounds + num_blocks, seen_to, mask=there)
    tl.store(bounds + 2 * num_blocks, whole_from, mask=there)
    tl.store(bounds + 3 * num_blocks, whole_to, mask=there)


@triton.jit
def _before(values, count, T, bound):
    """Whether there are ``count`` values and all of those are below ``bound``; they are in order."""
    inside = count <= T
    return inside & (tl.load(values + count - 1, mask=inside, other=0) < bound)


@triton.jit
def _is_seen(key, first, last, start, high, R: tl.constexpr):
    """[BN, R], whether keys are seen by the queries from ``start`` on, of which there are some up to ``high``."""
    row = start + tl.arange(0, R)
    begin = tl.load(first + row, mask=row < high, other=0)
    end = tl.load(last + row, mask=row < high, other=0)
    return (key[:, None] >= begin[None, :]) & (key[:, None] < end[None, :])


@triton.jit(do_not_specialize=["T", "S"])
def differentiate_keys(
    dout, q, k, v, lse, delta, first, last, bounds, dk, dv, total,
    scale, T, S, o_stride_t, o_stride_h, q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAREFUL: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv [S, H / GROUP, D] float32; ``bounds`` as :func:`find` leaves them; all matrices are transposed."""
    if CAREFUL and tl.abs(tl.load(total)) < float("inf"):
        return
    block, key_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    key, dim = block * BN + tl.arange(0, BN), tl.arange(0, BD)
    ks = _rows(k + key_head * k_stride_h, block * BN, S, k_stride_t, dim, D, BN).to(PRODUCT)
    vs = _rows(v + key_head * v_stride_h, block * BN, S, v_stride_t, dim, D, BN).to(PRODUCT)
    bounds += block
    low, high = tl.load(bounds), tl.load(bounds + tl.num_programs(0))
    all_from, all_to = tl.load(bounds + 2 * tl.num_programs(0)), tl.load(bounds + 3 * tl.num_programs(0))
    total_k = tl.zeros([BN, BD], tl.float32)
    total_v = tl.zeros([BN, BD], tl.float32)
    # One loop over blocks and members, so that loads run ahead from one member into the next.
    num_blocks = tl.maximum(tl.cdiv(high - low, BM), 0)
    for i in range(num_blocks * GROUP):
        start, head = low + i % num_blocks * BM, key_head * GROUP + i // num_blocks
        qs = _rows(q + head * q_stride_h, start, T, q_stride_t, dim, D, BM).to(PRODUCT)
        douts = _rows(dout + head * o_stride_h, start, T, o_stride_t, dim, D, BM).to(PRODUCT)
        lses, deltas = _facts(lse, delta, start, high, head, H, BM)
        if CAREFUL:
            qs, stray_q = _cleaned(qs)
            douts, stray_o = _cleaned(douts)
        exponents = tl.dot(ks, tl.trans(qs), input_precision=PRECISION) * (scale * _LOG2_E) - lses[None, :]
        if CAREFUL or (start < all_from) | (start + BM > all_to):
            seen = _is_seen(key, first, last, start, high, BM)
            exponents = tl.where(seen, exponents, -float("inf"))
        p = tl.exp2(exponents)
        if CAREFUL:
            p = tl.where(seen & (stray_q | stray_o)[None, :], float("nan"), p)
        total_v = tl.dot(p.to(PRODUCT), douts, total_v, input_precision=PRECISION)
        dp = tl.dot(vs, tl.trans(douts), input_precision=PRECISION)
        ds = p * (dp - deltas[None, :])
        if CAREFUL:
            ds = tl.where(seen, ds, 0.0)
        total_k = tl.dot(ds.to(PRODUCT), qs, total_k, input_precision=PRECISION)
    at = key.to(tl.int64) * (H // GROUP) + key_head
    inside = (key < S)[:, None] & (dim < D)[None, :]
    tl.store(dk + at[:, None] * D + dim[None, :], total_k * scale, mask=inside)
    tl.store(dv + at[:, None] * D + dim[None, :], total_v, mask=inside)
