// A layer's softmax attention in a decoding step: keys and values go into the sequence's pages, queries over all of them.

#pragma once

#include "worker.h"

namespace leyden::decode {

// Rotates the first dims of one head (RoPE).
inline void rotate(float *head, const float *cosine, const float *sine, int half) {
    vectors(half, [&](int64_t i, int n) {
        const Vector a = load(head + i, n), b = load(head + half + i, n);
        const Vector c = load(cosine + i, n), s = load(sine + i, n);
        store(head + i, a * c - b * s, n);
        store(head + half + i, b * c + a * s, n);
    });
}

template <class T> void softmax_attention(Worker<T> &worker, const Layer &layer) {
    const Model &model = worker.model;
    const Batch &batch = worker.batch;
    auto &work = worker.work;
    const int B = worker.B, D = model.hidden_size, H = model.num_heads, G = model.num_kv_heads, K = model.head_dim;
    const int width = H * K, group = H / G, half = model.rotary_dim / 2;
    const int64_t kv_width = G * K, stride = apart(width + 2 * kv_width), partial_width = K + 2;

    float *projected = work.projected + 0;
    worker.prefetch_nothing(), worker.prefetch(layer.q_proj, D, width);
    worker.prefetch(layer.k_proj, D, kv_width), worker.prefetch(layer.v_proj, D, kv_width);
    worker.project(layer.q_proj, D, width, worker.inputs(), projected, stride);
    worker.project(layer.k_proj, D, kv_width, worker.inputs(), projected + width, stride);
    worker.project(layer.v_proj, D, kv_width, worker.inputs(), projected + width + kv_width, stride);
    worker.barrier();

    worker.static_for(B, [&](int b) {
        const Token &token = batch.tokens[b];
        float *q = projected + b * stride, *k = q + width, *v = k + kv_width;
        for (int h = 0; h < H + G; h++) rotate(q + h * K, work.cosine + b * half, work.sine + b * half, half);
        for (int i = 0; i < width; i += LANES) store(work.queries + b * width + i, load(q + i));
        const int64_t page = batch.page_tables[token.page_table + token.position / PAGE];
        const int64_t place = (page * PAGE + token.position % PAGE) * kv_width;
        for (int i = 0; i < kv_width; i += LANES) {
            store((T *)layer.keys + place + i, load(k + i));
            store((T *)layer.values + place + i, load(v + i));
        }
    });
    worker.barrier();

    worker.dynamic_for(work.first_split[B] * G, [&](int64_t item) {
        const int64_t split = item / G, g = item % G;
        const auto &first = work.first_split;
        const int64_t b = std::upper_bound(first.begin(), first.end(), split) - first.begin() - 1;
        const Token &token = batch.tokens[b];
        attend_split((const T *)layer.keys + g * K, (const T *)layer.values + g * K, kv_width,
                     batch.page_tables + token.page_table, Splits(token.position + 1), split - first[b],
                     work.queries + b * width + g * group * K, group, K,
                     work.partial + (split * H + g * group) * partial_width);
    });
    worker.static_for(B * H, [&](int item) {
        const int64_t b = item / H, h = item % H, begin = work.first_split[b];
        combine_splits(work.partial + (begin * H + h) * partial_width, H * partial_width,
                       work.first_split[b + 1] - begin, K, work.attended + b * width + h * K);
    });
    worker.project_out(layer);
}

}  // namespace leyden::decode
