// What all threads of a decoding step read and write, each in its own tokens or columns.

#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>

#include "splits.h"

namespace leyden::decode {

// Memory kept between steps, whose contents are whatever they were.
template <class T> class Buffer {
  public:
    void fit(int64_t count) {
        if (count <= size) return;
        size = 0;
        memory.reset((T *)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
        size = count;
    }
    T *operator+(int64_t i) const { return memory.get() + i; }
    T &operator[](int64_t i) const { return memory.get()[i]; }

  private:
    struct Free {
        void operator()(T *p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> memory;
    int64_t size = 0;
};

constexpr int NEVER = INT32_MAX;

// Results of products have rows apart() from each other. X is what inputs of products are held in.
template <class X> struct Workspace {
    Buffer<float> residual;             // [B, D], the residual stream
    Buffer<float> normed;               // [B, D]
    Buffer<X> input;                    // [B, D], normed
    Buffer<float> cosine, sine;         // [B, rotary_dim / 2]
    Buffer<float> lightning_cosine, lightning_sine;  // [B, lightning_rotary_dim / 2]
    Buffer<float> turning_cosine, turning_sine;  // [B, K / 2], of cosFormer2
    Buffer<float> decays;               // [B, 2, HK], of HGRN2: whole numbers and rests
    Buffer<float> projected;            // [B, 3HK + HK]: qkv and the gate; or [B, HK + GK + GK + HK]: q, k, v and the gate
    Buffer<X> queries;                  // [B, HK]
    Buffer<float> partial;              // [splits of all tokens, H, K + 2]
    Buffer<float> recurred;             // [B, HK], what heads yield before they are normed or gated
    Buffer<X> attended;                 // [B, HK], what goes into out_proj
    Buffer<int32_t> expert_of;          // [A]
    Buffer<float> expert_weight;        // [A]
    Buffer<float> shared_coefficient;   // [B]
    Buffer<float> gate, up;             // [A, F] and behind it [B, shared width]
    Buffer<X> activated;                // the same
    Buffer<float> output;               // [A, D] and behind it [B, D]: of experts; [B, D] of out_proj
    std::vector<int64_t> first_split;   // [B + 1]
    std::atomic<int64_t> next_item{0};  // of those that threads take as they come
    std::atomic<int> failed{NEVER};     // the number of the barrier before which a thread's memory did not suffice

    void fit(const Model &m, const Batch &batch) {
        const int64_t B = batch.num_tokens, A = B * m.top_k, width = m.num_heads * m.head_dim;
        residual.fit(B * m.hidden_size), normed.fit(B * m.hidden_size), input.fit(B * m.hidden_size);
        cosine.fit(B * m.rotary_dim / 2), sine.fit(B * m.rotary_dim / 2);
        lightning_cosine.fit(B * m.lightning_rotary_dim / 2), lightning_sine.fit(B * m.lightning_rotary_dim / 2);
        for (int i = 0; i < m.num_layers; i++) {
            const int32_t mixer = m.layers[i].mixer;
            if (mixer == HGRN2) decays.fit(2 * B * width);
            if (mixer == COSFORMER2) turning_cosine.fit(B * m.head_dim / 2), turning_sine.fit(B * m.head_dim / 2);
        }
        projected.fit(B * apart(std::max<int64_t>(4 * width, 2 * width + 2 * m.num_kv_heads * m.head_dim)));
        queries.fit(B * width), recurred.fit(B * width), attended.fit(B * width);
        expert_of.fit(A), expert_weight.fit(A), shared_coefficient.fit(B);
        const int64_t hidden = A * apart(m.expert_width) + B * apart(m.widest_shared);
        gate.fit(hidden), up.fit(hidden), activated.fit(hidden), output.fit((A + B) * apart(m.hidden_size));
        first_split.assign(1, 0);
        for (int64_t b = 0; b < B; b++)
            first_split.push_back(first_split[b] + Splits(batch.tokens[b].position + 1).count);
        partial.fit(first_split[B] * m.num_heads * (m.head_dim + 2));
        next_item = 0, failed = NEVER;
    }
};

}  // namespace leyden::decode
