"""Lightning attention in Triton: three kernels that the forward, the backward and serving share.

Every one works on documents packed end to end, [tokens, heads, dim]; rows of a batch are documents of equal length.
Documents are cut into segments of L tokens, and these into chunks of C. Within a chunk attention is a masked C x C
product; what came before the chunk enters through the state at its beginning.

    summarise   what each segment adds to the state                                  [segments, H, K, V]
    scan        in place: from what segments add to the state at their beginning, document by document
    attend      the outputs, segment by segment, each from the state at its beginning

Where documents are many, each is one segment, and ``attend`` alone reads and writes the states of documents. Bounds of
documents are read from ``cu_seqlens`` (RAGGED), or all have one length; counts are not specialised on, so that another
batch compiles nothing.

Gated linear attention, whose decays follow from the data (GATED), takes the same three. Its queries and keys come with
the decays within their chunk applied, and with the weights of a chunk's tokens for each other, which kernels of its own
have made of them (``gated_linear_attention/kernels.py``); what is left of a state behind a chunk, a key dim at a time,
stands in ``totals``, the sums of log decays over chunks. A chunk that begins at token t of document d has row
``t // C + d`` there.

The backward is the same computation three times (docs/math.md). With time reversed, ``S_t`` becomes the gradient that
later tokens leave on the state, in which the current token is decayed once less and the others once more.
"""

import triton
import triton.language as tl


@triton.jit
def program_of(H: tl.constexpr, BLOCKS: tl.constexpr):
    """Row, head and block of this program. Programs that follow each other are the blocks of one head, which read the
    same queries and keys, then the heads of one row, which lie side by side."""
    program = tl.program_id(0)
    return (program // (BLOCKS * H)).to(tl.int64), (program // BLOCKS % H).to(tl.int64), program % BLOCKS


@triton.jit
def _bound(cu_seqlens, document, length, RAGGED: tl.constexpr):
    """The first token of a document, int64."""
    if RAGGED:
        bound = tl.load(cu_seqlens + document).to(tl.int64)
    else:
        bound = document.to(tl.int64) * length
    return bound


@triton.jit
def segment_of(segment, cu_seqlens, num_documents, length, L, SPLIT: tl.constexpr, RAGGED: tl.constexpr):
    """The document of a segment of at most L tokens, its first token, its end, and whether it is all of the document.

    The segments of a document begin at row ``cu_seqlens[document] // L + document``, which leaves room for all of them
    and is found without a table. A row with nothing in it has its end before its first token, or there.
    """
    document = segment
    if SPLIT:
        document, last = tl.cast(0, tl.int64), tl.cast(num_documents - 1, tl.int64)
        while document < last:
            middle = (document + last + 1) // 2
            begins = _bound(cu_seqlens, middle, length, RAGGED) // L + middle
            document = tl.where(begins <= segment, middle, document)
            last = tl.where(begins <= segment, last, middle - 1)
    begin, end = _bound(cu_seqlens, document, length, RAGGED), _bound(cu_seqlens, document + 1, length, RAGGED)
    first, whole = begin, True
    if SPLIT:
        part = segment - begin // L - document
        first, whole = begin + part * L, (part == 0) & (end - begin <= L)
        end = tl.minimum(end, first + L)
    return document, first, end, whole


@triton.jit
def tile(x, stride_t, token, valid, dim, D: tl.constexpr):
    """[tokens, dims] from a pointer to a chunk's first token; zero beyond the segment and the head's width."""
    return tl.load(x + token[:, None] * stride_t + dim[None, :], mask=valid[:, None] & (dim < D)[None, :], other=0.0)


@triton.jit
def _exponential(x):
    """The scale and the rest of exp(x) = scale (1 + rest), of an x from -87 to 0, as exact as float32."""
    halvings = tl.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - halvings * 0.693359375) + halvings * 2.12194440e-4  # log 2 in two parts, the first times them exact
    series = 1 + rest * (1 / 2 + rest * (1 / 6 + rest * (1 / 24 + rest * (1 / 120 + rest * (1 / 720 + rest / 5040)))))
    scale = ((halvings.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return scale, rest * series


@triton.jit
def _loss(slope, tokens):
    """exp(-slope tokens) - 1, the share of a state that is lost, as exact as float32.

    What is applied to a state at every step must not be off by the hardware's exponential (2^-22 of the whole, much of
    what slow heads forget in a token), nor by rounding a decay near 1: this times the state is added to the state.
    """
    x = tl.maximum(-slope * tokens, -87.0)
    scale, rest = _exponential(x)
    return tl.where(x > -87.0, scale * rest + (scale - 1), -1.0)


@triton.jit
def power(x, PRODUCT: tl.constexpr):
    """exp(x) for an x of at most 0, which multiplies numbers that are then rounded to PRODUCT; of NaN it is NaN."""
    if PRODUCT == tl.float32:  # noqa: SIM300
        scale, rest = _exponential(tl.where(x < -87.0, -87.0, x))
        result = tl.where(x < -87.0, 0.0, scale + scale * rest)
    else:
        result = tl.exp(x)
    return result


@triton.jit
def _kept(total):
    """exp(total) as a whole number, 1 or 0, and the rest: ``state * whole + (state * rest + added)`` rounds once.

    A decay near 1 must not be rounded, and of one near 0 the rest without a whole is as exact as float32.
    """
    scale, rest = _exponential(tl.where(total < -87.0, -87.0, total))
    slow = total > -0.5
    rest = scale * rest + tl.where(slow, scale - 1, scale)
    return slow.to(tl.float32), tl.where(total < -87.0, 0.0, rest)


@triton.jit
def _decay(slope, tokens, PRODUCT: tl.constexpr):
    """exp(-slope tokens), which multiplies numbers that are then rounded to PRODUCT."""
    tokens = tokens.to(tl.float32)
    if PRODUCT == tl.float32:  # noqa: SIM300
        decay = 1 + _loss(slope, tokens)
    else:
        decay = tl.exp(-slope * tokens)
    return decay


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_documents", "length", "L"])
def summarise(
    k, v, slopes, out, totals, decays, cu_seqlens,
    num_documents, length, L, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    GATED: tl.constexpr, RAGGED: tl.constexpr, REVERSE: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[segment, head] = sum_j exp(-slope (tokens that follow j)) k_j v_j^T, in float32, but for whole documents.

    GATED: decays[segment, head] is the sum of ``totals`` over the segment's chunks.
    """
    segment, head, block = program_of(H, tl.cdiv(V, BV))
    document, start, end, whole = segment_of(segment, cu_seqlens, num_documents, length, L, True, RAGGED)
    if whole | (start >= end):
        return
    value_dim, key_dim = block * BV + tl.arange(0, BV), tl.arange(0, BK)
    k += head * k_stride_h
    v += head * v_stride_h
    state = tl.zeros([BK, BV], dtype=tl.float32)
    if GATED:
        passed = tl.zeros([BK], dtype=tl.float32)
    else:
        slope = tl.load(slopes + head)
    num_chunks = tl.cdiv(end - start, C)
    for step in range(num_chunks):
        chunk = num_chunks - 1 - step if REVERSE else step
        first = start + chunk * C
        count = tl.minimum(end - first, C).to(tl.int32)
        token = tl.arange(0, C)
        valid = token < count
        ks = tile(k + first * k_stride_t, k_stride_t, token, valid, key_dim, K)
        vs = tile(v + first * v_stride_t, v_stride_t, token, valid, value_dim, V)
        if GATED:
            at_total = totals + ((first // C + document) * H + head) * K + key_dim
            total = tl.load(at_total, mask=key_dim < K, other=0.0)
            kept, rest = _kept(total)
            passed += total
            added = product(tl.trans(ks.to(PRODUCT)), vs.to(PRODUCT), PRECISION)
            state = state * kept[:, None] + (state * rest[:, None] + added)
        else:
            left = tl.maximum(token + 1 if REVERSE else count - 1 - token, 0)
            vs = (vs.to(tl.float32) * _decay(slope, left, PRODUCT)[:, None]).to(PRODUCT)
            state += state * _loss(slope, count.to(tl.float32))
            state += product(tl.trans(ks.to(PRODUCT)), vs, PRECISION)
    if GATED:
        tl.store(decays + (segment * H + head) * K + key_dim, passed, mask=(key_dim < K) & (block == 0))
    out += (segment * H + head) * K * V
    inside = (key_dim < K)[:, None] & (value_dim < V)[None, :]
    tl.store(out + key_dim[:, None] * V + value_dim[None, :], state, mask=inside)


@triton.jit(do_not_specialize=["length", "L"])
def scan(
    states, first, last, slots, slopes, decays, cu_seqlens, length, L,
    H: tl.constexpr, SIZE: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
    RAGGED: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_LAST: tl.constexpr, HAS_SLOTS: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """From what each segment adds to the state at each segment's beginning, in place; ``last`` is the final state.

    states: [segments, H, SIZE]; first, last: [documents, H, SIZE], or rows by slot; decays: [segments, H, SIZE / V].
    Documents of one segment are left to ``attend``.
    """
    document, head, block = program_of(H, tl.cdiv(SIZE, BLOCK))
    begin = _bound(cu_seqlens, document, length, RAGGED)
    tokens = _bound(cu_seqlens, document + 1, length, RAGGED) - begin
    if tokens <= L:
        return
    begin = begin // L + document
    num_segments = tl.cdiv(tokens, L)
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = element < SIZE
    if not GATED:
        slope = tl.load(slopes + head)
    row = tl.load(slots + document).to(tl.int64) if HAS_SLOTS else document
    of_document = (row * H + head) * SIZE + element
    state = tl.zeros([BLOCK], dtype=tl.float32)
    if HAS_FIRST:
        state = tl.load(first + of_document, mask=inside, other=0.0)
    for step in range(num_segments):
        segment = num_segments - 1 - step if REVERSE else step
        at = states + ((begin + segment) * H + head) * SIZE + element
        added = tl.load(at, mask=inside, other=0.0)
        tl.store(at, state, mask=inside)
        if GATED:
            at_decay = decays + ((begin + segment) * H + head) * (SIZE // V) + element // V
            kept, rest = _kept(tl.load(at_decay, mask=inside, other=0.0))
            state = state * kept + (state * rest + added)
        else:
            state += state * _loss(slope, tl.minimum(tokens - segment * L, L).to(tl.float32)) + added
    if HAS_LAST:
        tl.store(last + of_document, state, mask=inside)


@triton.jit(do_not_specialize=["num_documents", "length", "L"])
def attend(
    q, k, v, out, first, entries, last, slots, slopes, totals, weights, passed, met, cu_seqlens,
    num_documents, length, L,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h, out_stride_t, out_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    GATED: tl.constexpr, SPLIT: tl.constexpr, RAGGED: tl.constexpr, HAS_FIRST: tl.constexpr, HAS_LAST: tl.constexpr,
    HAS_SLOTS: tl.constexpr, TRANSPOSED: tl.constexpr, REVERSE: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The outputs of one segment and head, ``BV`` of its value dims.

    A segment that is a whole document begins from ``first`` and leaves its state in ``last``, both [documents, H, K, V]
    or rows by slot; the others (SPLIT) begin from ``entries`` [segments, H, K, V]. States are [.., V, K] if TRANSPOSED.

    GATED: a chunk's tokens see each other by ``weights`` [tokens, H, C], which are A[token, key], or not at all if
    TRANSPOSED. Then the decays are those of value dims; states at the beginnings of chunks are written to ``passed``
    [chunks, H, K, V], and with time reversed these are read, and their products with the states here, decayed over the
    chunk and summed over K, are written to ``met`` [chunks, H, V].
    """
    segment, head, block = program_of(H, tl.cdiv(V, BV))
    document, start, end, whole = segment_of(segment, cu_seqlens, num_documents, length, L, SPLIT, RAGGED)
    value_dim, key_dim = block * BV + tl.arange(0, BV), tl.arange(0, BK)
    if not GATED:
        slope = tl.load(slopes + head)
    row = tl.load(slots + document).to(tl.int64) if HAS_SLOTS else document
    of_state = key_dim[:, None] + value_dim[None, :] * K if TRANSPOSED else key_dim[:, None] * V + value_dim[None, :]
    in_state = (key_dim < K)[:, None] & (value_dim < V)[None, :]
    state = tl.zeros([BK, BV], dtype=tl.float32)
    if HAS_FIRST:
        state = tl.load(first + (row * H + head) * K * V + of_state, mask=in_state & whole, other=0.0)
    if SPLIT:  # one of the two masks is empty
        in_entry = in_state & (not whole) & (start < end)
        state += tl.load(entries + (segment * H + head) * K * V + of_state, mask=in_entry, other=0.0)
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
        qs = tile(q + begin * q_stride_t, q_stride_t, token, valid, key_dim, K).to(PRODUCT)
        ks = tile(k + begin * k_stride_t, k_stride_t, token, valid, key_dim, K).to(PRODUCT)
        vs = tile(v + begin * v_stride_t, v_stride_t, token, valid, value_dim, V)

        if GATED:
            result = product(qs, state.to(PRODUCT), PRECISION)
            if not TRANSPOSED:
                across, down = token[None, :], token[:, None]
                at = across * (H * C) + down if REVERSE else down * (H * C) + across
                at += (begin * H + head) * C
                scores = tl.load(weights + at, mask=(across if REVERSE else down) < count, other=0.0).to(PRODUCT)
                result += product(scores, vs.to(PRODUCT), PRECISION)
        else:
            # From what each chunk counts anew: else the decays of all pairs stay in registers from chunk to chunk.
            distance = mirrored[:, None] - mirrored[None, :]
            distance = distance if REVERSE else -distance
            scores = product(qs, tl.trans(ks), PRECISION) * _decay(slope, tl.maximum(distance, 0), PRODUCT)
            scores = tl.where(distance >= 0, scores, 0.0).to(PRODUCT)
            since = tl.maximum(age if REVERSE else age + 1, 0)  # decays since the state at the chunk's beginning
            left = tl.maximum(count - age if REVERSE else count - 1 - age, 0)  # and until the one at its end
            result = product(qs, state.to(PRODUCT), PRECISION) * _decay(slope, since, PRODUCT)[:, None]
            result += product(scores, vs.to(PRODUCT), PRECISION)
        inside = valid[:, None] & (value_dim < V)[None, :]
        at_out = out + begin * out_stride_t + token[:, None] * out_stride_t + value_dim[None, :]
        tl.store(at_out, result.to(out.dtype.element_ty), mask=inside)

        if GATED:
            number = (begin // C + document) * H + head
            if TRANSPOSED:
                total = tl.load(totals + number * V + value_dim, mask=value_dim < V, other=0.0)[None, :]
            else:
                total = tl.load(totals + number * K + key_dim, mask=key_dim < K, other=0.0)[:, None]
            kept, rest = _kept(total)
            if TRANSPOSED:
                at_passed = passed + number * K * V + key_dim[:, None] * V + value_dim[None, :]
                if REVERSE:
                    before = tl.load(at_passed, mask=in_state, other=0.0).to(tl.float32)
                    both = tl.sum((before * kept + before * rest) * state, axis=0)
                    tl.store(met + number * V + value_dim, both, mask=value_dim < V)
                else:
                    tl.store(at_passed, state.to(passed.dtype.element_ty), mask=in_state)
            added = product(tl.trans(ks), vs.to(PRODUCT), PRECISION)
            state = state * kept + (state * rest + added)
        else:
            vs = (vs.to(tl.float32) * _decay(slope, left, PRODUCT)[:, None]).to(PRODUCT)
            state += state * _loss(slope, count.to(tl.float32))
            state += product(tl.trans(ks), vs, PRECISION)
    if HAS_LAST:
        tl.store(last + (row * H + head) * K * V + of_state, state, mask=in_state & whole)


@triton.jit
def decode(
    q, k, v, out, states, new_states, slots, slopes, log_decay,
    q_stride_b, q_stride_h, k_stride_b, k_stride_h, v_stride_b, v_stride_h, decay_stride_b, decay_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, GATED: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
):  # fmt: skip
    """One token of one sequence and head, ``BV`` of its value dims; ``new_states`` may be ``states``.

    A negative slot is no sequence: its output is zero. GATED: the token's decays are exp(log_decay), one a key dim.
    """
    row, head, block = program_of(H, tl.cdiv(V, BV))
    value_dim, key_dim = block * BV + tl.arange(0, BV), tl.arange(0, BK)
    slot = tl.load(slots + row).to(tl.int64) if HAS_SLOTS else row
    in_key, in_value = key_dim < K, value_dim < V
    at_state = (slot * H + head) * K * V + key_dim[:, None] * V + value_dim[None, :]
    inside = in_key[:, None] & (in_value & (slot >= 0))[None, :]
    state = tl.load(states + at_state, mask=inside, other=0.0)
    qs = tl.load(q + row * q_stride_b + head * q_stride_h + key_dim, mask=in_key, other=0.0).to(tl.float32)
    ks = tl.load(k + row * k_stride_b + head * k_stride_h + key_dim, mask=in_key, other=0.0).to(tl.float32)
    vs = tl.load(v + row * v_stride_b + head * v_stride_h + value_dim, mask=in_value, other=0.0).to(tl.float32)
    if GATED:
        at_decay = log_decay + row * decay_stride_b + head * decay_stride_h + key_dim
        kept, rest = _kept(tl.load(at_decay, mask=in_key, other=0.0))
        state = state * kept[:, None] + (state * rest[:, None] + ks[:, None] * vs[None, :])
    else:
        state += state * _loss(tl.load(slopes + head), 1.0) + ks[:, None] * vs[None, :]
    tl.store(new_states + at_state, state, mask=inside)
    result = tl.where(slot >= 0, tl.sum(state * qs[:, None], axis=0), 0.0)
    tl.store(out + (row * H + head) * V + value_dim, result.to(out.dtype.element_ty), mask=in_value)
