// A layer's lightning attention in a decoding step: the recurrence, token by token.

#pragma once

#include "lightning_attention/decay.h"
#include "worker.h"

namespace leyden::decode {

constexpr int ACROSS = SUMS / 3 < 4 ? SUMS / 3 : 4;  // vectors of a state's row at once, with their values and sums

// S' = exp(-slope) S + k v^T;  o = S'^T q, for V vectors of columns. `from` may be `to`, or null for zeros.
template <int V>
inline void update_state(const float *from, float *to, Decay decay, const float *q, const float *k, const float *v,
                         int K, float *out) {
    Vector value[V], total[V] = {};
    for (int j = 0; j < V; j++) value[j] = load(v + j * LANES);
    for (int i = 0; i < K; i++)
        for (int j = 0; j < V; j++) {
            Vector s = k[i] * value[j];
            if (from) s = decay(load(from + i * K + j * LANES), s);
            store(to + i * K + j * LANES, s);
            total[j] += q[i] * s;
        }
    for (int j = 0; j < V; j++) store(out + j * LANES, total[j]);
}

// One head's state [K, K] in a slot.
inline float *state(const Model &model, const Layer &layer, int64_t slot, int64_t head) {
    return layer.states + (slot * model.num_heads + head) * model.head_dim * model.head_dim;
}

// One token of one head, whose q, k and v follow each other.
inline void recur(const Model &model, const Layer &layer, const Token &token, int64_t head, const float *qkv,
                  float *out) {
    const int K = model.head_dim;
    const float *q = qkv, *k = q + K, *v = k + K;
    const float *from = token.position ? state(model, layer, token.slot_before, head) : nullptr;
    float *to = state(model, layer, token.slot_after, head);
    const Decay decay(layer.slopes[head]);
    int j = 0;
    for (; j + ACROSS * LANES <= K; j += ACROSS * LANES)
        update_state<ACROSS>(from ? from + j : from, to + j, decay, q, k, v + j, K, out + j);
    for (; j < K; j += LANES) update_state<1>(from ? from + j : from, to + j, decay, q, k, v + j, K, out + j);
}

// o = out_proj( norm(heads) * sigmoid(gate) ), with silu on q, k and v.
template <class T> void lightning_attention(Worker<T> &worker, const Layer &layer) {
    const Model &model = worker.model;
    const Batch &batch = worker.batch;
    auto &work = worker.work;
    const int B = worker.B, D = model.hidden_size, H = model.num_heads, K = model.head_dim, width = H * K;
    const int64_t stride = apart(4 * width), num_sequences = batch.num_sequences;

    worker.prefetch_nothing();
    worker.prefetch(layer.qkv_proj, D, 3 * width), worker.prefetch(layer.output_gate, D, width);
    worker.static_for((int)num_sequences, [&](int i) {
        const int64_t slot = batch.tokens[batch.cu_seqlens[i]].slot_before;
        worker.prefetch(state(model, layer, slot, 0), H * K * K * sizeof(float));
    });
    worker.project(layer.qkv_proj, D, 3 * width, worker.inputs(), work.projected + 0, stride);
    worker.project(layer.output_gate, D, width, worker.inputs(), work.projected + 3 * width, stride);
    const auto [begin, end] = worker.columns(3 * width);
    const auto [gate_begin, gate_end] = worker.columns(width);
    for (int b = 0; b < B; b++) {
        float *qkv = work.projected + b * stride, *gate = qkv + 3 * width;
        for (int i = begin; i < end; i += LANES) {
            const Vector x = load(qkv + i);
            store(qkv + i, x * sigmoid(x));
        }
        for (int i = gate_begin; i < gate_end; i += LANES) store(gate + i, sigmoid(load(gate + i)));
    }
    worker.barrier();

    worker.static_for((int)num_sequences * H, [&](int item) {
        const int sequence = item / H, h = item % H;
        for (int64_t b = batch.cu_seqlens[sequence]; b < batch.cu_seqlens[sequence + 1]; b++)
            recur(model, layer, batch.tokens[b], h, work.projected + b * stride + 3 * h * K,
                  work.recurred + b * width + h * K);
    });
    worker.barrier();

    worker.static_for(B, [&](int b) {
        const float *x = work.recurred + b * width, *gate = work.projected + b * stride + 3 * width;
        const float scale = inverse_rms(x, width, model.output_norm_eps);
        for (int i = 0; i < width; i += LANES)
            store(work.attended + b * width + i, load(x + i) * scale * load(layer.output_norm + i) * load(gate + i));
    });
    worker.project_out(layer);
}

}  // namespace leyden::decode
