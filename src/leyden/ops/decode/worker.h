// One thread of the team that computes a decoding step: its share of the work, and what its layers have in common.

#pragma once

#include <utility>

#include "workspace.h"

namespace leyden::decode {

// Thrown by a thread that goes no further, since the memory of another did not suffice.
struct Stopped {};

inline float dot(const float *a, const float *b, int n) {
    Vector total = {};
    for (int i = 0; i < n; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}

// Rotates the first dims of one head (RoPE), and scales all of its K dims.
inline void rotate(float *head, const float *cosine, const float *sine, int half, int K, float scale) {
    vectors(half, [&](int64_t i, int n) {
        const Vector a = load(head + i, n), b = load(head + half + i, n);
        const Vector c = load(cosine + i, n), s = load(sine + i, n);
        store(head + i, (a * c - b * s) * scale, n);
        store(head + half + i, (b * c + a * s) * scale, n);
    });
    vectors(K - 2 * half, [&](int64_t i, int n) {
        float *still = head + 2 * half + i;
        store(still, load(still, n) * scale, n);
    });
}

// 1 / the root of the mean square.
inline float inverse_rms(const float *x, int n, float eps) { return 1 / std::sqrt(dot(x, x, n) / n + eps); }

// The norm of one head's K dims, in place; nothing where there is no weight.
inline void norm_head(float *head, const float *weight, int K, float eps) {
    if (!weight) return;
    const float scale = inverse_rms(head, K, eps);
    for (int i = 0; i < K; i += LANES) store(head + i, load(head + i) * scale * load(weight + i));
}

// Every thread of the team walks through the same layers and calls the same functions in the same order: what these
// write is complete behind the next barrier. T is the model's dtype.
template <class T> class Worker {
  public:
    using X = Input<T>;

    const Model &model;
    const Batch &batch;
    Workspace<X> &work;
    const int B;  // tokens

    Worker(const Model &model, const Batch &batch, Workspace<X> &work, int rank, int size)
        : model(model), batch(batch), work(work), B((int)batch.num_tokens), rank(rank), size(size) {}

    // An exception must not leave a thread, and the other threads wait for this one at their next barrier.
    template <class F> void run(F &&walk) {
        try {
            walk(*this);
        } catch (const Stopped &) {
        } catch (const std::bad_alloc &) {
            work.failed = barriers;
#pragma omp barrier
        }
    }

    // Behind a barrier that a failed thread came to, no thread goes on. One that has gone on to the next part of the
    // work may have failed there meanwhile, of which this barrier must not yet speak: all meet again at the next.
    void barrier() {
#pragma omp barrier
        if (work.failed <= barriers++) throw Stopped{};
    }

    // each(i) for this thread's part of `count` items, which is known beforehand.
    template <class F> void static_for(int count, F &&each) const {
        for (int i = rank * count / size; i < (rank + 1) * count / size; i++) each(i);
    }

    // Whether so many items keep all threads at work, although some take longer.
    bool suffices(int64_t items) const { return items >= 8 * size; }

    // each(i) for the items that no other thread takes first; ends with a barrier.
    template <class F> void dynamic_for(int64_t count, F &&each) {
        for (int64_t i; (i = work.next_item.fetch_add(1, std::memory_order_relaxed)) < count;) each(i);
        barrier();
        if (rank == 0) work.next_item = 0;
    }

    // This thread's columns, in whole vectors where the last thread does not take a rest.
    std::pair<int, int> columns(int count) const {
        const int64_t vectors = count / LANES;
        const int64_t begin = vectors * rank / size * LANES, end = vectors * (rank + 1) / size * LANES;
        return {(int)begin, rank == size - 1 ? count : (int)end};
    }

    // The hidden states of all tokens, normed, as an input of products.
    Rows<X> inputs() const { return {work.input + 0, model.hidden_size, B}; }

    // y = x w^T in this thread's columns of y, for w [out, in] from `row` on, of any kind.
    void project(const Matrix &w, int in, int out, Rows<X> x, float *y, int64_t y_stride, int64_t row = 0) {
        const std::pair<int, int> mine = columns(out);
        upcoming.enter();
        if (mine.first == mine.second) return;
        const float *scale = w.scale ? w.scale + row : nullptr;
        const auto of_kind = [&](const auto *weight) {
            product(weight + row * in, in, scale, in, mine.first, mine.second, x, y, y_stride, &upcoming);
        };
        if (w.kind == INT8) of_kind((const Int8 *)w.weight);
        else if (w.kind == BFLOAT16) of_kind((const BFloat16 *)w.weight);
        else if constexpr (std::is_same<X, float>::value) of_kind((const float *)w.weight);
    }

    // What is read from now on is said beforehand, in its order, so that memory does not rest while products compute:
    // nothing yet;
    void prefetch_nothing() { upcoming.clear(); }
    // any memory;
    void prefetch(const void *begin, int64_t bytes) { upcoming.add(begin, bytes); }
    // this thread's part of a matrix, as project() will read it.
    void prefetch(const Matrix &w, int in, int out, int64_t row = 0) {
        const auto [begin, end] = columns(out);
        const int64_t bytes = in * (w.kind == INT8 ? 1 : w.kind == BFLOAT16 ? 2 : 4);
        upcoming.add((const char *)w.weight + (row + begin) * bytes, (end - begin) * bytes);
    }

    // The norm of the residual stream of token b, as row `to`.
    void norm(const float *weight, int b, int to) const {
        const int D = model.hidden_size;
        const float *x = work.residual + b * D, scale = inverse_rms(x, D, model.norm_eps);
        for (int i = 0; i < D; i += LANES) {
            const Vector y = load(x + i) * scale * load(weight + i);
            store(work.normed + to * D + i, y);
            store(work.input + to * D + i, y);
        }
    }

    // What the residual connections keep of token b.
    const float *kept(int b) const { return (model.postnorm ? work.normed : work.residual) + b * model.hidden_size; }

    // From the heads of a mixer to the residual stream, in this thread's columns.
    void project_out(const Layer &layer) {
        const int D = model.hidden_size, width = model.num_heads * model.head_dim;
        prefetch_nothing(), prefetch(layer.out_proj, width, D);
        barrier();
        project(layer.out_proj, width, D, {work.attended + 0, width, B}, work.output + 0, apart(D));
        const auto [begin, end] = columns(D);
        for (int b = 0; b < B; b++) {
            const float *x = kept(b), *y = work.output + b * apart(D);
            for (int i = begin; i < end; i += LANES)
                store(work.residual + b * D + i,
                      load(x + i) * layer.attention_alpha + load(y + i) * layer.attention_beta);
        }
    }

  private:
    const int rank, size;
    int barriers = 0;  // that this thread has passed
    Upcoming upcoming;
};

}  // namespace leyden::decode
