// A layer's linear attention in a decoding step: the recurrence, token by token.
//
// The kinds differ in what becomes of the projections, in what is left of a state, and in whether there is an output gate:
//   lightning    silu on q, k and v, or norms and RoPE on q and k; one decay a head              gate
//   cosFormer2   silu on q and k, which are then turned by their positions; no decay             gate
//   HGRN2        silu on q; a decay for each key dim, which follows from the token, as does k    no gate

#pragma once

#include "lightning_attention/decay.h"
#include "worker.h"

namespace leyden::decode {

constexpr int ACROSS = SUMS / 3 < 4 ? SUMS / 3 : 4;  // vectors of a state's row at once, with their values and sums

// S' = Diag(decays) S + k v^T;  o = S'^T q, for V vectors of columns; decay_of(i) is row i's. `from` may be `to`, or null
// for zeros.
template <int V, class D>
inline void update_state(const float *from, float *to, const D &decay_of, const float *q, const float *k,
                         const float *v, int K, float *out) {
    Vector value[V], total[V] = {};
    for (int j = 0; j < V; j++) value[j] = load(v + j * LANES);
    for (int i = 0; i < K; i++) {
        const Decay decay = decay_of(i);
        for (int j = 0; j < V; j++) {
            Vector s = k[i] * value[j];
            if (from) s = decay(load(from + i * K + j * LANES), s);
            store(to + i * K + j * LANES, s);
            total[j] += q[i] * s;
        }
    }
    for (int j = 0; j < V; j++) store(out + j * LANES, total[j]);
}

// One head's state [K, K] in a slot.
inline float *state(const Model &model, const Layer &layer, int64_t slot, int64_t head) {
    return layer.states + (slot * model.num_heads + head) * model.head_dim * model.head_dim;
}

// One token of one head, whose q, k and v follow each other.
template <class D>
inline void recur(const Model &model, const Layer &layer, const Token &token, int64_t head, const D &decay_of,
                  const float *qkv, float *out) {
    const int K = model.head_dim;
    const float *q = qkv, *k = q + K, *v = k + K;
    const float *from = token.position ? state(model, layer, token.slot_before, head) : nullptr;
    float *to = state(model, layer, token.slot_after, head);
    int j = 0;
    for (; j + ACROSS * LANES <= K; j += ACROSS * LANES)
        update_state<ACROSS>(from ? from + j : from, to + j, decay_of, q, k, v + j, K, out + j);
    for (; j < K; j += LANES) update_state<1>(from ? from + j : from, to + j, decay_of, q, k, v + j, K, out + j);
}

// Of forget gates f = b + (1 - b) sigmoid(x), whose logits x lie in `key`: the keys 1 - f, and f as a whole number and the
// rest (decay.h). Neither is formed from a rounded f, so that what a gate near 1 forgets is as exact as a float.
inline void forget(float *key, float *whole, float *rest, const Layer &layer) {
    constexpr float SLOW = 0.39346934f;  // 1 - exp(-1/2)
    const Vector x = load(key);
    store(rest, sigmoid(x) * layer.above_bound + layer.lower_bound);
    store(key, sigmoid(-x) * layer.above_bound);
    for (int i = 0; i < LANES; i++) {
        whole[i] = key[i] < SLOW;
        rest[i] = key[i] < SLOW ? -key[i] : rest[i];
    }
}

// In this thread's columns, from the projections of all tokens to what the recurrence and the gate take.
template <class T> void activate(const Worker<T> &worker, const Layer &layer) {
    const int H = worker.model.num_heads, K = worker.model.head_dim, width = H * K;
    const int silus = worker.model.lightning_silu ? 3 : 0;
    const int activated = layer.mixer == LIGHTNING ? silus : layer.mixer == COSFORMER2 ? 2 : 1;  // of q, k and v
    const auto [begin, end] = worker.columns(3 * width);
    const auto [gate_begin, gate_end] = worker.columns(width);
    for (int b = 0; b < worker.B; b++) {
        float *qkv = worker.work.projected + b * apart(4 * width), *gate = qkv + 3 * width;
        for (int i = begin; i < end; i += LANES) {
            const int part = i / K % 3;
            const Vector x = load(qkv + i);
            if (part < activated) {
                store(qkv + i, x * sigmoid(x));
            } else if (part == 1 && layer.mixer == HGRN2) {
                float *whole = worker.work.decays + 2 * b * width + i / (3 * K) * K + i % K;
                forget(qkv + i, whole, whole + width, layer);
            }
        }
        if (layer.mixer == HGRN2) continue;
        for (int i = gate_begin; i < gate_end; i += LANES) store(gate + i, sigmoid(load(gate + i)));
    }
}

// Head h of token b.
template <class T> void attend_to_state(const Worker<T> &worker, const Layer &layer, int64_t b, int64_t h) {
    const Model &model = worker.model;
    auto &work = worker.work;
    const int K = model.head_dim, half = K / 2, width = model.num_heads * K;
    float *qkv = work.projected + b * apart(4 * width) + 3 * h * K, *out = work.recurred + b * width + h * K;
    const Token &token = worker.batch.tokens[b];
    if (layer.mixer == HGRN2) {
        const float *whole = work.decays + 2 * b * width + h * K, *rest = whole + width;
        recur(model, layer, token, h, [=](int i) { return Decay(whole[i], rest[i]); }, qkv, out);
        return;
    }
    if (layer.mixer == COSFORMER2)
        for (int part = 0; part < 2; part++)
            rotate(qkv + part * K, work.turning_cosine + b * half, work.turning_sine + b * half, half, K, 1);
    if (layer.mixer == LIGHTNING) {
        const int turning = model.lightning_rotary_dim / 2;
        const float *cosine = work.lightning_cosine + b * turning, *sine = work.lightning_sine + b * turning;
        norm_head(qkv, layer.q_norm, K, model.norm_eps), norm_head(qkv + K, layer.k_norm, K, model.norm_eps);
        rotate(qkv, cosine, sine, turning, K, model.lightning_scale), rotate(qkv + K, cosine, sine, turning, K, 1);
    }
    const Decay decay(layer.slopes[h]);
    recur(model, layer, token, h, [=](int) { return decay; }, qkv, out);
}

// o = out_proj( norm(heads) * sigmoid(gate) ), or without the gate.
template <class T> void linear_attention(Worker<T> &worker, const Layer &layer) {
    const Model &model = worker.model;
    const Batch &batch = worker.batch;
    auto &work = worker.work;
    const int D = model.hidden_size, H = model.num_heads, K = model.head_dim, width = H * K;
    const int64_t stride = apart(4 * width), num_sequences = batch.num_sequences;
    const bool has_gate = layer.mixer != HGRN2;

    worker.prefetch_nothing(), worker.prefetch(layer.qkv_proj, D, 3 * width);
    if (has_gate) worker.prefetch(layer.output_gate, D, width);
    worker.static_for((int)num_sequences, [&](int i) {
        const int64_t slot = batch.tokens[batch.cu_seqlens[i]].slot_before;
        worker.prefetch(state(model, layer, slot, 0), H * K * K * sizeof(float));
    });
    worker.project(layer.qkv_proj, D, 3 * width, worker.inputs(), work.projected + 0, stride);
    if (has_gate) worker.project(layer.output_gate, D, width, worker.inputs(), work.projected + 3 * width, stride);
    activate(worker, layer);
    worker.barrier();

    worker.static_for((int)num_sequences * H, [&](int item) {
        const int sequence = item / H, h = item % H;
        for (int64_t b = batch.cu_seqlens[sequence]; b < batch.cu_seqlens[sequence + 1]; b++)
            attend_to_state(worker, layer, b, h);
    });
    worker.barrier();

    worker.static_for(worker.B, [&](int b) {
        const float *x = work.recurred + b * width, *gate = work.projected + b * stride + 3 * width;
        const int each = width / model.norm_groups;
        for (int first = 0; first < width; first += each) {
            const float scale = inverse_rms(x + first, each, model.output_norm_eps);
            for (int i = first; i < first + each; i += LANES) {
                const Vector y = load(x + i) * scale * load(layer.output_norm + i);
                store(work.attended + b * width + i, has_gate ? y * load(gate + i) : y);
            }
        }
    });
    worker.project_out(layer);
}

}  // namespace leyden::decode
