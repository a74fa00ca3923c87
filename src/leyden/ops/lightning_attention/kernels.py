"""Lightning attention in Triton: three kernels that the forward, the backward and serving share.

Every one works on documents packed end to end, [tokens, heads, dim]; rows of a batch are documents of equal length.
Documents are cut into segments of L tokens, and these into chunks of C. Within a chunk attention is a masked C x C
product; what came before the chunk enters through the state at its beginning.

    summarise   what each segment adds to the state                                  [segments, H, K, V]
    scan        in place: from what segments add to the state at their beginning, document by document
    attend      the outputs, segment by segment, each from the state at its beginning

Where documents are many, each is one segment, and ``attend`` alone reads and writes the states of documents.

The backward is the same computation three times (docs/math.md). With time reversed, ``S_t`` becomes the gradient that
later tokens leave on the state, in which the current token is decayed once less and the others once more.
"""

import triton
import triton.language as tl


@triton.jit
def _segment(table, cu_seqlens, num_documents, L):
    """The document of this program's segment, and the segment's first token and end; past the last, no document."""
    row = tl.program_id(0)
    document = tl.load(table + 2 * row).to(tl.int64)
    first = tl.load(cu_seqlens + document).to(tl.int64) + tl.load(table + 2 * row + 1).to(tl.int64) * L
    end = tl.load(cu_seqlens + document + 1, mask=document < num_documents, other=0).to(tl.int64)
    return document, first, tl.minimum(end, first + L)


@triton.jit
def _tile(x, stride_t, token, valid, dim, D: tl.constexpr):
    """[tokens, dims] from a pointer to a chunk's first token; zero beyond the segment and the head's width."""
    return tl.load(x + token[:, None] * stride_t + dim[None, :], mask=valid[:, None] & (dim < D)[None, :], other=0.0)


@triton.jit
def _decay(slope, tokens):
    return tl.exp(-slope * tokens.to(tl.float32))


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def summarise(
    k, v, slopes, out, table, cu_seqlens,
    num_documents, L, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, REVERSE: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[segment, head] = sum_j exp(-slope (tokens that follow j)) k_j v_j^T, in float32."""
    document, start, end = _segment(table, cu_seqlens, num_documents, L)
    if document >= num_documents:
        return
    head, value_dim, key_dim = tl.program_id(1).to(tl.int64), tl.program_id(2) * BV + tl.arange(0, BV), tl.arange(0, BK)
    slope = tl.load(slopes + head)
    k += head * k_stride_h
    v += head * v_stride_h
    state = tl.zeros([BK, BV], dtype=tl.float32)
    num_chunks = tl.cdiv(end - start, C)
    for step in range(num_chunks):
        chunk = num_chunks - 1 - step if REVERSE else step
        first = start + chunk * C
        count = tl.minimum(end - first, C).to(tl.int32)
        token = tl.arange(0, C)
        valid = token < count
        ks = _tile(k + first * k_stride_t, k_stride_t, token, valid, key_dim, K)
        vs = _tile(v + first * v_stride_t, v_stride_t, token, valid, value_dim, V)
        left = tl.maximum(token + 1 if REVERSE else count - 1 - token, 0)
        vs = (vs.to(tl.float32) * _decay(slope, left)[:, None]).to(PRODUCT)
        state = state * _decay(slope, count) + _product(tl.trans(ks.to(PRODUCT)), vs, PRECISION)
    out += (tl.program_id(0).to(tl.int64) * H + head) * K * V
    inside = (key_dim < K)[:, None] & (value_dim < V)[None, :]
    tl.store(out + key_dim[:, None] * V + value_dim[None, :], state, mask=inside)


@triton.jit
def scan(
    states, first, last, slots, slopes, segments, cu_seqlens, L,
    H: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_FIRST: tl.constexpr, HAS_SLOTS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """From what each segment adds to the state at each segment's beginning, in place; ``last`` is the final state.

    states: [segments, H, SIZE]; first, last: [documents, H, SIZE], or rows by slot; segments: [documents + 1], where
    each document's segments begin.
    """
    document, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    element = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = element < SIZE
    slope = tl.load(slopes + head)
    row = tl.load(slots + document).to(tl.int64) if HAS_SLOTS else document
    of_document = (row * H + head) * SIZE + element
    state = tl.zeros([BLOCK], dtype=tl.float32)
    if HAS_FIRST:
        state = tl.load(first + of_document, mask=inside, other=0.0)
    begin, end = tl.load(segments + document).to(tl.int64), tl.load(segments + document + 1).to(tl.int64)
    tokens = tl.load(cu_seqlens + document + 1).to(tl.int64) - tl.load(cu_seqlens + document).to(tl.int64)
    for step in range(end - begin):
        segment = end - begin - 1 - step if REVERSE else step
        at = states + ((begin + segment) * H + head) * SIZE + element
        added = tl.load(at, mask=inside, other=0.0)
        tl.store(at, state, mask=inside)
        state = state * _decay(slope, tl.minimum(tokens - segment * L, L)) + added
    tl.store(last + of_document, state, mask=inside)


@triton.jit
def attend(
    q, k, v, out, first, last, slots, slopes, table, cu_seqlens,
    num_documents, L,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h, out_stride_t, out_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    SPLIT: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_LAST: tl.constexpr, HAS_SLOTS: tl.constexpr,
    TRANSPOSED: tl.constexpr, REVERSE: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The outputs of one segment and head, ``BV`` of its value dims.

    ``first`` holds the state at the beginning of each segment (SPLIT) or document, ``last`` gets that at the end of
    each document; both are [rows, H, K, V], or [rows, H, V, K] (TRANSPOSED), rows by slot where there are slots.
    """
    document, start, end = _segment(table, cu_seqlens, num_documents, L)
    if document >= num_documents:
        return
    head, value_dim, key_dim = tl.program_id(1).to(tl.int64), tl.program_id(2) * BV + tl.arange(0, BV), tl.arange(0, BK)
    slope = tl.load(slopes + head)
    row = tl.program_id(0).to(tl.int64) if SPLIT else document
    if HAS_SLOTS:
        row = tl.load(slots + document).to(tl.int64)
    at_state = (row * H + head) * K * V
    of_state = key_dim[:, None] + value_dim[None, :] * K if TRANSPOSED else key_dim[:, None] * V + value_dim[None, :]
    in_state = (key_dim < K)[:, None] & (value_dim < V)[None, :]
    state = tl.zeros([BK, BV], dtype=tl.float32)
    if HAS_FIRST:
        state = tl.load(first + at_state + of_state, mask=in_state, other=0.0)
    q += head * q_stride_h
    k += head * k_stride_h
    v += head * v_stride_h
    out += head * out_stride_h
    num_chunks = tl.cdiv(end - start, C)
    for step in range(num_chunks):
        chunk = num_chunks - 1 - step if REVERSE else step
        begin = start + chunk * C
        count = tl.minimum(end - begin, C).to(tl.int32)
        token = tl.arange(0, C)
        valid = token < count
        # How many tokens of the chunk came before each; what follows is the same in both directions of time.
        mirrored = count - 1 - token
        age = mirrored if REVERSE else token
        qs = _tile(q + begin * q_stride_t, q_stride_t, token, valid, key_dim, K).to(PRODUCT)
        ks = _tile(k + begin * k_stride_t, k_stride_t, token, valid, key_dim, K).to(PRODUCT)
        vs = _tile(v + begin * v_stride_t, v_stride_t, token, valid, value_dim, V)

        # From what each chunk counts anew: else the decays of all pairs stay in registers from chunk to chunk.
        distance = mirrored[:, None] - mirrored[None, :]
        distance = distance if REVERSE else -distance
        scores = _product(qs, tl.trans(ks), PRECISION) * _decay(slope, tl.maximum(distance, 0))
        scores = tl.where(distance >= 0, scores, 0.0).to(PRODUCT)
        since = tl.maximum(age if REVERSE else age + 1, 0)  # decays since the state at the chunk's beginning
        left = tl.maximum(count - age if REVERSE else count - 1 - age, 0)  # and until the one at its end
        result = _product(qs, state.to(PRODUCT), PRECISION) * _decay(slope, since)[:, None]
        result += _product(scores, vs.to(PRODUCT), PRECISION)
        inside = valid[:, None] & (value_dim < V)[None, :]
        at_out = out + begin * out_stride_t + token[:, None] * out_stride_t + value_dim[None, :]
        tl.store(at_out, result.to(out.dtype.element_ty), mask=inside)

        vs = (vs.to(tl.float32) * _decay(slope, left)[:, None]).to(PRODUCT)
        state = state * _decay(slope, count) + _product(tl.trans(ks), vs, PRECISION)
    if HAS_LAST:
        tl.store(last + at_state + of_state, state, mask=in_state)


@triton.jit
def decode(
    q, k, v, out, states, slots, slopes,
    q_stride_b, q_stride_h, k_stride_b, k_stride_h, v_stride_b, v_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One token of one sequence and head, ``BV`` of its value dims; the state is updated in place.

    A negative slot is no sequence: its output is zero.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    value_dim, key_dim = tl.program_id(2) * BV + tl.arange(0, BV), tl.arange(0, BK)
    slot = tl.load(slots + row).to(tl.int64)
    in_key, in_value = (key_dim < K) & (slot >= 0), value_dim < V
    at_state = (slot * H + head) * K * V + key_dim[:, None] * V + value_dim[None, :]
    inside = in_key[:, None] & in_value[None, :]
    state = tl.load(states + at_state, mask=inside, other=0.0)
    qs = tl.load(q + row * q_stride_b + head * q_stride_h + key_dim, mask=in_key, other=0.0).to(tl.float32)
    ks = tl.load(k + row * k_stride_b + head * k_stride_h + key_dim, mask=in_key, other=0.0).to(tl.float32)
    vs = tl.load(v + row * v_stride_b + head * v_stride_h + value_dim, mask=in_value, other=0.0).to(tl.float32)
    state = state * tl.exp(-tl.load(slopes + head)) + ks[:, None] * vs[None, :]
    tl.store(states + at_state, state, mask=inside)
    result = tl.sum(state * qs[:, None], axis=0)
    tl.store(out + (row * H + head) * V + value_dim, result.to(out.dtype.element_ty), mask=in_value)
