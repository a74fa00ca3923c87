// A layer's softmax attention in a decoding step. Keys and values go into the sequence's pages, or into the ring of its
// newest ones where a token sees no more than a window.

#pragma once

#include "worker.h"

namespace leyden::decode {

// From one token's q, k, v and gate to those of the next.
inline int64_t projected_stride(const Model &model) {
    return apart(2 * (model.num_heads + model.num_kv_heads) * model.head_dim);
}

// The projections of all tokens, and their queries as inputs of products. A thread may go on with its own tokens; what is
// there of others is complete behind the next barrier.
template <class T> void project_and_rotate(Worker<T> &worker, const Layer &layer) {
    const Model &model = worker.model;
    auto &work = worker.work;
    const int D = model.hidden_size, H = model.num_heads, G = model.num_kv_heads, K = model.head_dim;
    const int width = H * K, kv_width = G * K, half = model.rotary_dim / 2;
    const int64_t stride = projected_stride(model);
    float *projected = work.projected + 0;
    worker.prefetch_nothing(), worker.prefetch(layer.q_proj, D, width);
    worker.prefetch(layer.k_proj, D, kv_width), worker.prefetch(layer.v_proj, D, kv_width);
    if (layer.output_gate.weight) worker.prefetch(layer.output_gate, D, width);
    worker.project(layer.q_proj, D, width, worker.inputs(), projected, stride);
    worker.project(layer.k_proj, D, kv_width, worker.inputs(), projected + width, stride);
    worker.project(layer.v_proj, D, kv_width, worker.inputs(), projected + width + kv_width, stride);
    if (layer.output_gate.weight)
        worker.project(layer.output_gate, D, width, worker.inputs(), projected + width + 2 * kv_width, stride);
    worker.barrier();
    worker.static_for(worker.B, [&](int b) {
        float *q = projected + b * stride;
        for (int h = 0; h < H + G; h++) {
            norm_head(q + h * K, h < H ? layer.q_norm : layer.k_norm, K, model.norm_eps);
            rotate(q + h * K, work.cosine + b * half, work.sine + b * half, half, K, model.rotary_scale);
        }
        for (int i = 0; i < width; i += LANES) store(work.queries + b * width + i, load(q + i));
    });
}

// From the partial results of a head of token b, which lie `stride` apart, to what goes into the output projection.
template <class T>
void finish_head(const Worker<T> &worker, const Layer &layer, int64_t b, int64_t h, const float *partial, int64_t stride,
                 int64_t count) {
    const Model &model = worker.model;
    auto &work = worker.work;
    const int K = model.head_dim, width = model.num_heads * K;
    const int64_t at = b * width + h * K;
    if (!layer.output_gate.weight) return combine_splits(partial, stride, count, K, work.attended + at);
    const float *gate = work.projected + b * projected_stride(model) + width + 2 * model.num_kv_heads * K + h * K;
    float *out = work.recurred + at;
    combine_splits(partial, stride, count, K, out);
    for (int i = 0; i < K; i += LANES) store(work.attended + at + i, load(out + i) * sigmoid(load(gate + i)));
}

// Keys and values of `width` elements, of one token or one head of it, into the place that they have from now on.
template <class T> void keep(const float *k, const float *v, int width, T *key, T *value) {
    for (int i = 0; i < width; i += LANES) store(key + i, load(k + i)), store(value + i, load(v + i));
}

template <class T> void softmax_attention(Worker<T> &worker, const Layer &layer) {
    const Model &model = worker.model;
    const Batch &batch = worker.batch;
    auto &work = worker.work;
    const int B = worker.B, H = model.num_heads, G = model.num_kv_heads, K = model.head_dim;
    const int width = H * K, kv_width = G * K, group = H / G;
    const int64_t partial_width = K + 2;

    project_and_rotate(worker, layer);
    worker.static_for(B, [&](int b) {
        const Token &token = batch.tokens[b];
        const float *k = work.projected + b * projected_stride(model) + width, *v = k + kv_width;
        const int64_t page = batch.page_tables[token.page_table + token.position / PAGE];
        const int64_t place = (page * PAGE + token.position % PAGE) * kv_width;
        keep(k, v, kv_width, (T *)layer.keys + place, (T *)layer.values + place);
    });
    worker.barrier();

    // All key heads of a split at once, or each by itself where there would not be enough for the threads.
    const auto &first = work.first_split;
    const int64_t parts = worker.suffices(first[B]) ? 1 : G, some = G / parts;
    worker.dynamic_for(first[B] * parts, [&](int64_t item) {
        const int64_t split = item / parts, g = item % parts * some;
        const int64_t b = std::upper_bound(first.begin(), first.end(), split) - first.begin() - 1;
        const Token &token = batch.tokens[b];
        attend_split((const T *)layer.keys + g * K, (const T *)layer.values + g * K, kv_width,
                     batch.page_tables + token.page_table, Splits(token.position + 1), split - first[b],
                     work.queries + b * width + g * group * K, (int)some, group, K,
                     work.partial + (split * H + g * group) * partial_width);
    });
    worker.static_for(B * H, [&](int item) {
        const int64_t b = item / H, h = item % H, begin = work.first_split[b];
        finish_head(worker, layer, b, h, work.partial + (begin * H + h) * partial_width, H * partial_width,
                    work.first_split[b + 1] - begin);
    });
    worker.project_out(layer);
}

// One token's queries of key head g over the newest keys of its sequence. The slot is a ring: the token at position p lies
// at place p % W, so that the order of a sum depends on the position alone.
template <class T> void attend_window(Worker<T> &worker, const Layer &layer, int64_t b, int64_t g) {
    const Model &model = worker.model;
    auto &work = worker.work;
    const Token &token = worker.batch.tokens[b];
    const int H = model.num_heads, G = model.num_kv_heads, K = model.head_dim, group = H / G;
    const int64_t W = layer.window, width = H * K, kv_width = G * K, slot = W * kv_width;
    T *keys = (T *)layer.keys + token.slot_after * slot + g * K;
    T *values = (T *)layer.values + token.slot_after * slot + g * K;
    if (token.slot_before != token.slot_after) {
        const int64_t back = (token.slot_before - token.slot_after) * slot;
        for (int64_t i = 0; i < std::min(token.position, W) * kv_width; i += kv_width) {
            std::memcpy((void *)(keys + i), keys + back + i, K * sizeof(T));
            std::memcpy((void *)(values + i), values + back + i, K * sizeof(T));
        }
    }
    const float *k = work.projected + b * projected_stride(model) + width + g * K, *v = k + kv_width;
    const int64_t place = token.position % W * kv_width;
    keep(k, v, K, keys + place, values + place);

    float *partial = work.partial + (b * H + g * group) * (K + 2);
    for (int h = 0; h < group; h++) begin_partial(partial + h * (K + 2), K);
    const int64_t length = std::min(token.position + 1, W);
    for (int64_t first = 0; first < length; first += PAGE)
        attend_block(keys + first * kv_width, values + first * kv_width, kv_width,
                     (int)std::min<int64_t>(PAGE, length - first), work.queries + b * width + g * group * K, group, K,
                     partial);
    for (int h = 0; h < group; h++) finish_head(worker, layer, b, g * group + h, partial + h * (K + 2), 0, 1);
}

// A token may write where the one before it in the step has read, so that a sequence's tokens go one after another.
template <class T> void sliding_window_attention(Worker<T> &worker, const Layer &layer) {
    const Batch &batch = worker.batch;
    const int64_t G = worker.model.num_kv_heads;
    project_and_rotate(worker, layer);
    worker.barrier();
    worker.dynamic_for(batch.num_sequences * G, [&](int64_t item) {
        const int64_t sequence = item / G, g = item % G;
        for (int64_t b = batch.cu_seqlens[sequence]; b < batch.cu_seqlens[sequence + 1]; b++)
            attend_window(worker, layer, b, g);
    });
    worker.project_out(layer);
}

}  // namespace leyden::decode
